"""Generate answers: batched, greedy or sampled, independent of the rest of the batch and of the process.

Sampling draws one uniform number per token from a stream of its own for every (seed, prompt, sample), and inverts
the cumulative distribution with it; the process's random state is neither read nor moved. A prompt's stream is named by
its place in the list, or by numbers of the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from ballast.batching import batches
from ballast.data.render import prompt_ids
from ballast.errors import BallastError
from ballast.evaluation.scoring import BATCH_TOKENS, ScoredSequence, inference
from ballast.evaluation.stopping import StopStrings, answer_text, before_stop, check_stop
from ballast.limits import context_length
from ballast.protocols import Model, Progress, Tokenizer
from ballast.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch import Tensor

Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A prompt alone, text or messages; or a row with ``prompt`` and perhaps ``tools`` and ``chat_template_kwargs``."""


class _Generates(Protocol):
    """What every class for causal language modelling has, and its base class lacks."""

    def generate(self, **inputs: Any) -> Tensor: ...


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate.

    Attributes:
        max_new_tokens: tokens after which an answer is cut off.
        samples: answers per prompt.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the most likely tokens up to this mass (applied after the temperature).
        seed: of the samples.
        batch_tokens: rows × (prompt + new tokens) of one batch.
        stop: texts that end an answer: at the first token after which its text contains one.

    Raises:
        BallastError: for a value out of range, or several samples at temperature 0, which would all be the same.
    """

    max_new_tokens: int = 256
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_tokens: int = BATCH_TOKENS
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "samples", "batch_tokens"):
            if getattr(self, name) < 1:
                raise BallastError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.temperature < 0:
            raise BallastError(f"temperature = {self.temperature}: must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise BallastError(f"top_p = {self.top_p}: must lie in (0, 1]")
        if self.seed < 0:
            raise BallastError(f"seed = {self.seed}: must be 0 or above")
        if isinstance(self.stop, str) or not all(self.stop):
            raise BallastError(f"stop = {self.stop!r}: must be a tuple of texts that are not empty")
        if self.samples > 1 and self.temperature == 0:
            raise BallastError(
                f"samples = {self.samples} at temperature 0: greedy answers are all the same, so pass@k would equal "
                "accuracy; set a temperature above 0, or samples to 1"
            )


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: without special tokens, and before the first stop string.
        tokens: its length, the tokens that ended it included.
        ended: whether it ended by itself: at an end token or a stop string.
        ids: of all its tokens.
    """

    text: str
    tokens: int
    ended: bool
    ids: tuple[int, ...] = field(repr=False)


class Sampler(Protocol):
    """What generates answers: `generate`, or an engine in its place."""

    def __call__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        options: GenerationOptions | None = None,
        *,
        streams: Sequence[Sequence[int]] | None = None,
        progress: Progress | None = None,
        ranks: Ranks = ALONE,
    ) -> list[list[Completion]]: ...


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """Return the ids of a prompt exactly as fine-tuning sees them, see `ballast.data.render`.

    Raises:
        BallastError: if messages are given and the tokenizer has no chat template, or it cannot write them.
    """
    return prompt_ids(prompt if isinstance(prompt, Mapping) else {"prompt": prompt}, tokenizer)


def encode_rows(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Return the ids of all prompts.

    Raises:
        BallastError: naming the first row that cannot be written.
    """
    encoded = []
    for row, prompt in enumerate(prompts):
        try:
            encoded.append(encode_prompt(tokenizer, prompt))
        except BallastError as error:
            raise BallastError(f"row {row + 1}: {error}") from error
    return encoded


def encode_prompts(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Return the ids of all prompts, each with room for the answer.

    Raises:
        BallastError: naming the first row that cannot be written, is empty, or leaves no room for `max_new_tokens` in
            the context.
    """
    encoded = encode_rows(tokenizer, prompts)
    check_room([len(ids) for ids in encoded], max_new_tokens, context_length(model))
    return encoded


def check_room(
    sizes: Sequence[int],
    new: int,
    limit: int | None,
    *,
    option: str = "max_new_tokens",
    what: str = "the model's context",
    why: str = "positions beyond it are untrained and would yield garbage",
) -> None:
    """Refuse prompts without tokens, and those that leave no room for an answer.

    Args:
        sizes: tokens of each row's prompt.
        new: tokens that are sampled; 0 where answers are given.
        limit: tokens of prompt and answer together, None being without bound.
        option, what, why: what an error calls `new` and `limit`, and what would become of a longer sequence.

    Raises:
        BallastError: naming the first such row.
    """
    for row, size in enumerate(sizes, start=1):
        if not size:
            raise BallastError(f"row {row}: the prompt has no tokens, so there is nothing to continue")
        if limit is not None and size >= limit:
            raise BallastError(f"row {row}: prompt of {size} tokens leaves nothing of {what} {limit} to an answer")
        if limit is not None and size + new > limit:
            raise BallastError(
                f"row {row}: prompt of {size} tokens + {option} {new} exceeds {what} {limit}: {why}; shorten the "
                f"prompt, or lower {option}"
            )


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    options: GenerationOptions | None = None,
    *,
    streams: Sequence[Sequence[int]] | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> list[list[Completion]]:
    """Return `options.samples` completions for every prompt, in the prompts' order.

    Only `options` decides: the model's own generation defaults (top-k, repetition penalty) do not apply, its end
    tokens do. The model's modes and generation configuration are the same afterwards.

    Args:
        model: a transformers causal language model, PEFT-wrapped or not, in any mode.
        tokenizer: its tokenizer.
        prompts: texts, lists of messages, or rows that have them.
        options: how to generate.
        streams: for every prompt whole numbers of 0 or more that name its random stream, all of one length; sample s
            of prompt i is drawn from (seed, *streams[i], s), so that it does not depend on the other prompts of the
            call. None takes (i,), the prompt's place.
        progress: called with (completions done, completions in all).
        ranks: who shares the batches; all have the same prompts, and all get all answers.

    Raises:
        BallastError: naming the first prompt that is empty or leaves no room for the answer, or a stop string that
            cannot be found.
        ValueError: for streams that do not fit the prompts.
    """
    options = options or GenerationOptions()
    streams = [(row,) for row in range(len(prompts))] if streams is None else streams
    check_streams(streams, len(prompts))
    check_stop(tokenizer, options.stop)
    encoded = encode_prompts(model, tokenizer, prompts, options.max_new_tokens)
    rows = [(row, sample) for row in range(len(encoded)) for sample in range(options.samples)]
    # Padding before the prompts is read once; small batches would be written token by token.
    sizes = [len(encoded[row]) + options.max_new_tokens for row, _ in rows]
    every = list(batches(sizes, options.batch_tokens))
    ends = end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    own, found, done = ranks.share(every), [], 0
    with inference(model), _own_configuration(model, options, ends, pad):
        answers = _answers_by(model, encoded, pad)
        for batch in own:
            members = [rows[i] for i in batch]
            seeds = [(options.seed, *streams[row], sample) for row, sample in members]
            asked = [encoded[row] for row, _ in members]
            stopping = StopStrings(tokenizer, asked, options.stop, ends) if options.stop else None
            new_ids = answers(_Batch(model, asked, seeds, options, pad, ends, stopping))
            read = [(encoded[row], ids) for (row, _), ids in zip(members, new_ids, strict=True)]
            found.append([read_completion(tokenizer, prompt, ids, ends, options.stop) for prompt, ids in read])
            done += len(batch)
            if progress is not None:
                progress(done, sum(map(len, own)))
    results: list[list[Any]] = [[None] * options.samples for _ in encoded]
    for batch, completions in zip(every, ranks.merge(found), strict=True):
        for place, completion in zip(batch, completions, strict=True):
            row, sample = rows[place]
            results[row][sample] = completion
    return results


def check_streams(streams: Sequence[Sequence[int]], prompts: int) -> None:
    """Refuse streams that do not fit the prompts; raises ValueError."""
    if len(streams) != prompts:
        raise ValueError(f"{len(streams)} streams for {prompts} prompts")
    # Numbers are padded with zeros into a seed: streams of two lengths could draw the same samples unnoticed.
    if len({len(stream) for stream in streams}) > 1:
        raise ValueError("streams of different lengths may be one and the same stream; give all the same length")


def own_sequences(
    encoded: Sequence[tuple[int, ...]], completions: Sequence[Sequence[Completion]]
) -> list[ScoredSequence]:
    """Return prompt + answer of every completion as a sequence whose answer tokens are scored."""
    return [
        ScoredSequence(ids + completion.ids, len(ids))
        for ids, samples in zip(encoded, completions, strict=True)
        for completion in samples
    ]


@dataclass(frozen=True)
class _Batch:
    """Prompts that are answered at once, a row for each answer.

    Attributes:
        model: that answers.
        prompts: of every row.
        seeds: of every row.
        options: how to generate.
        pad: the padding's id.
        ends: ids of end tokens.
        stopping: where there are stop strings.
    """

    model: Model
    prompts: list[tuple[int, ...]]
    seeds: list[tuple[int, ...]]
    options: GenerationOptions
    pad: int
    ends: set[int]
    stopping: StopStrings | None

    def is_end(self, row: int, token: int) -> bool:
        """Return whether this token, the newest of this row, ends its answer."""
        stopped = self.stopping is not None and self.stopping.completes(row, token)
        return stopped or token in self.ends


def _answers_by(model: Model, prompts: Sequence[tuple[int, ...]], pad: int) -> Callable[[_Batch], list[list[int]]]:
    """Return our own loop, or transformers' where a model's cache cannot be spread over the answers of a prompt."""
    from ballast.evaluation.decoding import spreads

    return _write if prompts and spreads(model, prompts[0], pad) else _generate


def _write(batch: _Batch) -> list[list[int]]:
    from ballast.evaluation.decoding import Reader, write
    from ballast.evaluation.drawing import Draw

    options = batch.options
    draw = Draw(batch.seeds, options.max_new_tokens, options.temperature, options.top_p)
    return write(Reader(batch.model, batch.pad), batch.prompts, options.max_new_tokens, draw, batch.is_end)


def _generate(batch: _Batch) -> list[list[int]]:
    import torch
    from transformers import StoppingCriteriaList

    from ballast.evaluation.drawing import InverseSampler, uniforms, warpers

    options, pad, prompts, stopping = batch.options, batch.pad, batch.prompts, batch.stopping
    width = max(len(ids) for ids in prompts)
    device = batch.model.device
    ids_BT = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
    attention_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    processors = []
    if options.temperature:
        sampler = InverseSampler(uniforms(batch.seeds, options.max_new_tokens), width)
        processors = [*warpers(options.temperature, options.top_p), sampler]
    output_BT = cast(_Generates, batch.model).generate(
        input_ids=ids_BT,
        attention_mask=attention_BT,
        logits_processor=processors,
        stopping_criteria=None if stopping is None else StoppingCriteriaList([stopping]),
    )
    new_ids: list[list[int]] = output_BT[:, width:].tolist()
    # Behind a stop there is padding, which may well be an end token.
    return new_ids if stopping is None else [ids[:size] for ids, size in zip(new_ids, stopping.lengths, strict=True)]


def end_ids(model: Model, tokenizer: Tokenizer) -> set[int]:
    """Return the ids that end an answer: the generation configuration's and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = configured if isinstance(configured, (list, tuple, set)) else [configured]
    return {int(end) for end in (*ends, tokenizer.eos_token_id) if end is not None}


@contextmanager
def _own_configuration(model: Model, options: GenerationOptions, ends: set[int], pad: int) -> Iterator[None]:
    """Replace the generation configuration: `generate` would fill what ours leaves open from the model's own."""
    from transformers import GenerationConfig

    configuration = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )
    # A PEFT wrapper overwrites its inner model's configuration with its own, so all of them are put back.
    modules: list[Any] = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [module.generation_config for module in modules]
    for module in modules:
        module.generation_config = configuration
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            module.generation_config = own


def read_completion(
    tokenizer: Tokenizer, prompt: tuple[int, ...], ids: Sequence[int], ends: set[int], stop: Sequence[str] = ()
) -> Completion:
    """Return the answer that sampled ids spell behind their prompt, up to and with the first end token.

    Its text ends before the first stop string, where one has ended it.
    """
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    answer = tuple(ids if end is None else ids[: end + 1])
    text = answer_text(tokenizer, prompt, answer)
    before = before_stop(text, stop)
    ended = end is not None or before is not None
    return Completion(text=text if before is None else before, tokens=len(answer), ended=ended, ids=answer)
