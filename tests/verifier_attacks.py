"""Programs that do not meet their tests and try to pass all the same."""

FORGED = """b'{"status": "passed", "detail": ""}'"""
FAIL = "\nassert False, 'the tests are not met'\n"
WRITE = """
import os
def write(data):
    for fd in range(3, 64):
        try:
            os.write(fd, data)
        except OSError:
            pass
"""
SECRETS = """
def secrets(values):
    for value in values:
        if isinstance(value, (bytes, bytearray)) and len(value) in (32, 64):
            write(bytes.fromhex(value.decode()) if len(value) == 64 else bytes(value))
            os._exit(0)
"""

ATTACKS = {
    "leaves at once": "import os\nos._exit(0)",
    "leaves through sys.exit": "import sys\nsys.exit(0)",
    "leaves from a thread while the tests run": "import os, threading, time\n"
    "threading.Timer(0.1, os._exit, (0,)).start()\ntime.sleep(1)" + FAIL,
    "writes a verdict at its exit": WRITE + f"import atexit\natexit.register(write, {FORGED})\nraise SystemExit(0)",
    "writes a verdict to every open file": "import os\n"
    "for fd in os.listdir('/proc/self/fd'):\n"
    f"    try: os.write(int(fd), {FORGED})\n"
    "    except OSError: pass\n"
    "os._exit(0)",
    "writes a verdict before it fails": WRITE + f"write({FORGED})" + FAIL,
    "writes the words of the protocol": WRITE + "for word in (b'ready', b'passed', b''): write(word)" + FAIL,
    "writes a verdict from a child": WRITE + f"if os.fork() == 0:\n    write({FORGED})\nos._exit(0)",
    "writes a verdict from another program": WRITE + "import sys\n"
    "for fd in range(3, 64):\n"
    "    try: os.set_inheritable(fd, True)\n"
    "    except OSError: pass\n"
    "code = 'import os\\nfor fd in range(3, 64):\\n try: os.write(fd, %r)\\n except OSError: pass'\n"
    f"os.execv(sys.executable, ['python', '-c', code % {FORGED}])",
    "floods the pipe": WRITE + "while True: write(b'x' * 65536)",
    "looks for the secret in frames": WRITE + SECRETS + """
import sys
frame = sys._getframe()
while frame is not None:
    for names in (frame.f_locals, frame.f_globals):
        secrets(names.values())
        for value in list(names.values()):
            if isinstance(value, int) and 2 < value < 64:
                try: secrets([os.read(value, 32)])
                except OSError: pass
    secrets(frame.f_code.co_consts)
    frame = frame.f_back
for frame in sys._current_frames().values():
    secrets(frame.f_locals.values())
os._exit(0)
""",
    "looks for the secret with the collector": WRITE + SECRETS + """
import gc, sys
frame = sys._getframe()
while frame is not None:
    try: secrets(gc.get_referents(frame))
    except RuntimeError: pass
    frame = frame.f_back
for find in (gc.get_objects, lambda: gc.get_referrers(os.write)):
    try: found = find()
    except RuntimeError: continue
    for one in found:
        if isinstance(one, dict): secrets(list(one.values()))
        elif isinstance(one, (list, tuple)): secrets(one)
os._exit(0)
""",
    "looks for the secret in what started it": WRITE + SECRETS + """
for of in ('self', str(os.getppid())):
    for name in ('cmdline', 'environ', 'fd/0'):
        try: data = os.read(os.open(f'/proc/{of}/{name}', os.O_RDONLY | os.O_NONBLOCK), 10**6)
        except OSError: continue
        secrets([*data.split(bytes(1)), data[-32:]])
os._exit(0)
""",
    "writes the runner's own output and kills it": f"""
import os, signal
parent = os.getppid()
try: os.write(os.open(f'/proc/{{parent}}/fd/1', os.O_WRONLY), {FORGED})
except OSError: pass
os.kill(parent, signal.SIGKILL)
""",
    "kills the runner": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)" + FAIL,
    "interrupts the runner": "import os, signal\nos.kill(os.getppid(), signal.SIGINT)" + FAIL,
    "kills the runner's group": "import os, signal\nos.killpg(os.getpgid(os.getppid()), signal.SIGKILL)" + FAIL,
    "replaces what the runner calls": WRITE + f"""
import builtins, json, sys
real = os.write
os.write = lambda fd, data: real(fd, {FORGED})
json.dumps = lambda value: {FORGED}.decode()
builtins.BaseException = builtins.Exception = builtins.AssertionError = KeyError
sys.stdout = sys.stderr = None
""" + FAIL,
    "jumps over its tests": """
import sys
def jump(frame, event, argument):
    if event == 'line' and frame.f_code.co_filename == '<answer>' and frame.f_lineno == 13:
        frame.f_lineno = 14
    return jump
try:
    sys.settrace(jump)
    sys._getframe().f_trace = jump
except RuntimeError:
    pass
assert True
assert len('right') == 2
end = 1
""",
    "ends by a signal without a name": "import os\nos.kill(os.getpid(), 40)",
}  # fmt: skip
