"""What samples answers: the model in this process, a vLLM server, or any server that speaks OpenAI's API.

Evaluation, groups and revisions are given a function with the signature of `ballast.evaluation.generation.generate`;
which one, the recipe's ``engine`` says.
"""
