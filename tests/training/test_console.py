"""What the console shows: on a pipe, on a terminal, on another process; and the model's table against the model."""

import io
import os
import pty
import re
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import transformers
from torch import nn

from triune.configuration import TriuneConfig
from triune.modeling import (
    TriuneForCausalLM,
    TriuneForImageClassification,
    TriuneForMaskedLM,
    TriuneForSequenceClassification,
)
from triune.training import console as console_file
from triune.training.console import Console, before_after, clock, model_parts, number, power_of_ten, quantity, silence


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": 40, "max_position_embeddings": 12, "pad_token_id": 0}
PATCHES = {"type": "patches", "image_size": 8, "patch_size": 4, "num_channels": 1}
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}}
OF_TRANSFORMERS = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}

MODELS = {
    "masked": lambda: TriuneForMaskedLM(TriuneConfig(**SIZES, **TEXT)),
    "masked with a transform": lambda: TriuneForMaskedLM(TriuneConfig(**SIZES, **TEXT, lm_head="transform")),
    "causal": lambda: TriuneForCausalLM(TriuneConfig(**SIZES, **TEXT, attention="causal")),
    "causal, not tied": lambda: TriuneForCausalLM(
        TriuneConfig(**SIZES, **TEXT, tie_word_embeddings=False, attention="causal")
    ),
    "images": lambda: TriuneForImageClassification(TriuneConfig(**SIZES, embedding=PATCHES, **LABELS)),
    "texts": lambda: TriuneForSequenceClassification(TriuneConfig(**SIZES, **TEXT, **LABELS)),
    "BERT": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**OF_TRANSFORMERS, vocab_size=40)),
    "GPT-2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2)),
    "ViT": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**OF_TRANSFORMERS, image_size=32)),
}

RECORD = {"kind": "eval", "step": 50, "seconds": 61.0, "full": True, "loss": 2.9841, "perplexity": 19.77}
RECORD |= {"accuracy": 0.312, "top5_accuracy": 0.61}
BASELINES = {"loss": {"unigram": 5.381}, "accuracy": {"most frequent token": 0.054, "3-NN": 0.4}}
PREVIEW = ["the [MASK] is [bold]true[/bold] :smile:", " ▄▀█" * 60]
STEP = {"kind": "train", "step": 50, "loss": 4.2131, "learning_rate": 9.1e-4, "grad_norm": 0.71, "throughput": 11234.0}


def tell(console):
    """Everything a console can say, once."""
    console.header({"versions": "torch " + "2.13.0, " * 40, "device": "cpu"})
    console.line("data", "471 documents")
    console.model_table(MODELS["masked"]())
    console.plan({"steps": "900"})
    console.begin(900)
    console.step(STEP)
    console.step(STEP | {"step": 100}, log=True)
    console.evaluation(RECORD, BASELINES, PREVIEW, best=True)
    console.note("a note")
    console.warning("a warning")
    console.end({"loss": "6.2 -> 2.9"}, next_command="python scripts/predict.py " + "runs/bert/model " * 20)
    console.print_recipes([("recipes/bert.yaml", "A BERT", "masked_lm", "bert-base")], {"masked_lm": "Fill.\n\nMore."})
    console.close()


def told(**options):
    file = io.StringIO()
    tell(Console(file=file, **options))
    return file.getvalue()


class Terminal:
    """A file that is a terminal, and what was written to it; read by a thread, for its buffer is small."""

    def __init__(self):
        self.master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8", buffering=1)
        self.parts = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        while True:
            try:
                part = os.read(self.master, 65536)
            except OSError:  # how Linux says that the other end is closed
                part = b""
            if not part:
                return
            self.parts.append(part)

    def wait_for(self, text):
        deadline = time.monotonic() + 5
        while text not in self.text() and time.monotonic() < deadline:
            time.sleep(0.01)

    def text(self):
        return b"".join(self.parts).decode("utf-8", "replace")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    yield terminal
    terminal.file.close()
    terminal.reader.join(5)
    os.close(terminal.master)


def all_of(terminal):
    """What was written, once the file is closed."""
    terminal.file.close()
    terminal.reader.join(5)
    return terminal.text()


CURSOR = re.compile(r"\x1b\[\?25[lh]")


def without_escapes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def test_numbers():
    """Against how they are written by hand, where rounding carries over too."""
    expected = {0: "0", 5: "5.00", 41.04: "41.0", 999.4: "999", 999.6: "1.00k", 11234: "11.2k", 41000: "41.0k"}
    expected |= {9.996: "10.0", 99.96: "100", 2.5e6: "2.50M", 999_999: "1.00M", 7e20: "700E", 7e21: "7000E"}
    assert {value: number(value) for value in expected} == expected
    assert quantity(1.5e9, "FLOP") == "1.50 GFLOP" and quantity(0.5, "B") == "0.50 B"
    assert [power_of_ten(x) for x in (0, 9.1e-4, 1.0, 3e-12)] == ["0", "9.1e-4", "1.0e0", "3.0e-12"]


def test_clock():
    """Against hours, minutes and seconds by hand; what is not a time is not shown as one."""
    expected = {0: "00:00", 30.6: "00:31", 59.7: "01:00", 3599: "59:59", 3600: "1:00:00", 90061: "1d 01:01:01"}
    assert {value: clock(value) for value in expected} == expected
    assert {clock(value) for value in (float("nan"), float("inf"), -1)} == {"--:--"}


# ---------------------------------------------------------------------------------------------------------------------
# The model's table


@pytest.mark.parametrize("kind", MODELS)
def test_parts_sum_to_the_model(kind):
    """Parameters and bytes of all rows: those of the model, where tied ones are there once."""
    model = MODELS[kind]()
    parts = model_parts(model)
    assert sum(part.parameters for part in parts) == model.num_parameters()
    assert sum(part.trainable for part in parts) == model.num_parameters()
    assert sum(part.size for part in parts) == sum(p.nbytes for p in model.parameters())
    assert len([part for part in parts if part.name.startswith("3 x ")]) == 1


@pytest.mark.parametrize("kind", MODELS)
def test_parts_hold_what_their_names_say(kind):
    """Each row that is not a group of layers: the sum over parameters whose names begin with it."""
    model = MODELS[kind]()
    for part in model_parts(model):
        if not part.name.startswith("3 x "):
            own = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{part.name}.")]
            assert part.parameters == sum(p.numel() for p in own), part


def test_tied_weights_are_named():
    """The head that shares the table of tokens has no parameters and says whose it uses; untied it has its own."""
    tied = {part.name: part for part in model_parts(MODELS["causal"]())}
    assert tied["lm_head"].parameters == 0 and tied["lm_head"].note == "tied to model.embed_tokens"
    untied = {part.name: part for part in model_parts(MODELS["causal, not tied"]())}
    assert untied["lm_head"].parameters == 40 * 16 and untied["lm_head"].note == "40 x 16"


def test_table_shows_rows_total_and_frozen_share():
    """The printed numbers of the column of parameters: rows sum to the last; a frozen half is half."""
    model = nn.Module()
    model.one, model.two = nn.Linear(9, 10, bias=False), nn.Linear(9, 10, bias=False)
    model.layers = nn.ModuleList([nn.LayerNorm(30), nn.Linear(5, 12), nn.LayerNorm(30), nn.LayerNorm(6)])
    model.nothing = nn.ModuleList([nn.Identity(), nn.Identity()])
    model.one.requires_grad_(False)
    file = io.StringIO()
    Console(file=file).model_table(model)
    rows = [line.split() for line in file.getvalue().splitlines() if re.search(r"\d\.\d\d$", line)]
    counts = [int(row[-2].replace(",", "")) for row in rows]
    assert counts == [90, 90, 120, 72, 12, 384]
    assert rows[2][:3] == ["2", "x", "LayerNorm"] and rows[3][0] == "layers" and "76.56% trained" in file.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# A pipe, and other processes


def test_pipe_gets_plain_whole_lines():
    """No control characters, no trailing spaces, no line broken, nothing taken for markup or an emoji."""
    text = told()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "  versions     torch " + ("2.13.0, " * 40).strip() in text.splitlines()
    for line in PREVIEW:
        assert f"    {line}" in text.splitlines()
    assert "  python scripts/predict.py " + ("runs/bert/model " * 20).strip() in text.splitlines()


def test_pipe_stays_plain_when_colour_is_forced(monkeypatch):
    """FORCE_COLOR, as CI systems set it, changes nothing: a log file has no escapes."""
    plain = told()
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert told() == plain


def test_ascii_pipe_does_not_stop_the_run():
    """A pipe that cannot take a character gets another in its place."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    tell(Console(file=file))
    assert b"???" in raw.getvalue() and b"6.2 -> 2.9" in raw.getvalue()


def test_other_processes_are_silent():
    """Not one character."""
    assert told(main=False) == ""


def test_progress_lines():
    """On a pipe a line when told so, and only then, with what a run wants to know; other units have other names."""
    file = io.StringIO()
    console = Console(file=file)
    console.begin(900, unit="images")
    console.step(STEP)
    assert not file.getvalue().strip()
    console.step({"step": 51}, log=True)
    line = file.getvalue().strip()
    assert re.fullmatch(
        r"51/900 \| loss 4\.213 \| lr 9\.1e-4 \| grad norm 0\.71 \| 11\.2k img/s \| \d\d:\d\d left", line
    )


def test_time_left(monkeypatch):
    """2 s a step, after a first one of 100 s that does not count: 80 steps take 160 s, and a budget may be shorter."""
    now = [0.0]
    monkeypatch.setattr(console_file.time, "perf_counter", lambda: now[0])
    console = Console(file=io.StringIO())
    console.begin(100, first_step=9, max_seconds=170.0)
    assert console.progress() == ["9/100", "--:-- left"]
    for step in range(10, 21):
        now[0] += 100 if step == 10 else 2
        console.step({"step": step, "seconds": 0.0})
    assert console.progress() == ["20/100", "02:40 left"]
    console.step({"step": 20, "seconds": 130.0})
    assert console.progress()[-1] == "00:40 left"
    console.step({"step": 20, "seconds": 180.0})
    assert console.progress()[-1] == "00:00 left"


def test_evaluation_puts_baselines_beside_metrics():
    """A row for each metric that has baselines, in the same form; the others together in one."""
    lines = told().splitlines()
    start = lines.index("step 50/900 | evaluation on all of the data | 01:01 | best so far")
    assert re.split(r"  +", lines[start + 1].strip()) == ["loss", "2.984", "unigram 5.381"]
    assert re.split(r"  +", lines[start + 2].strip()) == ["accuracy", "31.2%", "most frequent token 5.4%, 3-NN 40.0%"]
    assert lines[start + 3].strip() == "perplexity 19.77 | top-5 accuracy 61.0%"


def test_before_after():
    """Rows for the end box: first and last value in the metric's own form, and its baseline."""
    rows = before_after({"loss": 6.24, "accuracy": 0.002}, {**RECORD, "accuracy": 0.513}, BASELINES)
    assert rows["loss"] == "6.240 -> 2.984  (unigram 5.381)"
    assert rows["accuracy"] == "0.2% -> 51.3%  (most frequent token 5.4%, 3-NN 40.0%)"
    assert rows["perplexity"] == "19.77" and "step" not in rows and "full" not in rows


def test_recipes_and_tasks_are_listed():
    """Path, task, preset and comment of a recipe, and the first line of what a task says of itself."""
    lines = [re.split(r"  +", line.strip()) for line in told().splitlines()]
    assert ["recipes/bert.yaml", "masked_lm", "bert-base", "A BERT"] in lines and ["masked_lm", "Fill."] in lines
    assert ["More."] not in lines
    file = io.StringIO()
    Console(file=file).print_recipes([], {})
    assert file.getvalue().split() == ["no", "recipes", "here", "no", "tasks", "here"]


# ---------------------------------------------------------------------------------------------------------------------
# A terminal


@pytest.mark.parametrize("columns", [80, 50, 30])
def test_live_line_is_one_line(monkeypatch, terminal, columns):
    """The cursor moves to no other line, and what is drawn fits. A bar if there is room: at 30 columns there is, for
    the loss does not fit."""
    monkeypatch.setattr(console_file, "REDRAW", 0.0)
    monkeypatch.setenv("COLUMNS", str(columns))
    console = Console(file=terminal.file)
    assert console.terminal
    console.begin(900)
    for step in range(1, 200):
        console.step(STEP | {"step": step}, log=True)
    console.close()
    live = without_escapes(all_of(terminal)).strip()
    drawn = [line for line in live.split("\r") if line]
    assert len(drawn) >= 200 and "\n" not in live
    assert max(map(len, drawn)) <= columns
    assert ("━" in drawn[-1]) == (columns != 50) and "199/900 | " in drawn[-1] and drawn[-1].endswith(" left")


def test_terminal_has_colours_and_wraps_beside_the_label(terminal):
    """Long rows go on under their text; better than all baselines is green, worse than one yellow."""
    console = Console(file=terminal.file)
    tell(console)
    console.evaluation({"step": 50, "accuracy": 0.5}, BASELINES)
    text = all_of(terminal)
    lines = without_escapes(text).replace("\r", "").split("\n")
    first = next(index for index, line in enumerate(lines) if line.startswith("  versions"))
    assert len(lines[first].rstrip()) <= 80 and lines[first + 1].startswith(" " * 15 + "2.13.0")
    preview = next(index for index, line in enumerate(lines) if line.startswith("     ▄▀█"))
    assert lines[preview + 1].startswith("      ▄▀█") and len(lines[preview].rstrip()) <= 80
    assert "\x1b[33m31.2%" in text and "\x1b[32m50.0%" in text and "\x1b[32m2.984" in text


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_terminal_is_given_back(terminal, error):
    """After an error or Ctrl-C in the middle of training: the streams are the old ones, and the line is gone."""
    before = sys.stdout, sys.stderr
    with pytest.raises(error), Console(file=terminal.file) as console:
        console.begin(900)
        console.step(STEP)
        meanwhile = sys.stdout, sys.stderr
        raise error
    console.close()
    assert (sys.stdout, sys.stderr) == before and meanwhile[0] is not before[0]
    text = all_of(terminal)
    assert CURSOR.findall(text)[-1] == "\x1b[?25h" and text.rindex("\x1b[2K") > text.rindex("/900")


def test_cursor_is_visible_during_training(terminal):
    """So that not even a kill leaves a terminal without one."""
    console = Console(file=terminal.file)
    console.begin(900)
    terminal.wait_for("0/900")
    assert CURSOR.findall(terminal.text())[-1] == "\x1b[?25h"
    console.close()


def test_dumb_terminal_gets_plain_lines(monkeypatch, terminal):
    """TERM=dumb, as in an editor's window: the same as a pipe."""
    monkeypatch.setenv("TERM", "dumb")
    tell(Console(file=terminal.file))
    assert all_of(terminal).replace("\r\n", "\n") == told()


@pytest.mark.slow
def test_process_that_forgets_to_close(terminal):
    """A process that ends by an error, without `with`: the error is whole, the live line erased, the cursor shown."""
    program = """
        from triune.training.console import Console
        console = Console()
        console.begin(900)
        console.step({"step": 1, "loss": 2.0})
        raise ValueError("what went wrong")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, stdout=terminal.file, stderr=terminal.file, check=False).returncode == 1
    text = all_of(terminal)
    assert "ValueError: what went wrong\r\n" in without_escapes(text)
    assert text.rindex("\x1b[2K") > text.rindex("/900") > text.rindex("what went wrong")
    assert CURSOR.findall(text)[-1] == "\x1b[?25h"


# ---------------------------------------------------------------------------------------------------------------------
# Silence


@pytest.mark.slow
def test_silence(tmp_path):
    """A process that saves, loads and warns, with the libraries' own output: nothing; without `silence`: something."""
    program = f"""
        import sys
        import datasets, transformers
        from triune.configuration import TriuneConfig
        from triune.modeling import TriuneForMaskedLM, TriuneForSequenceClassification
        from triune.training.console import silence
        if sys.argv[1] == "yes":
            silence()
        model = TriuneForMaskedLM(TriuneConfig(**{SIZES}, **{TEXT}))
        model.save_pretrained({str(tmp_path)!r})
        TriuneForSequenceClassification.from_pretrained({str(tmp_path)!r})
        datasets.Dataset.from_dict({{"a": [1, 2]}}).map(lambda row: row)
        transformers.utils.logging.get_logger("transformers.some").warning("a warning")
    """
    outputs = {}
    for answer in ("yes", "no"):
        command = [sys.executable, "-c", textwrap.dedent(program), answer]
        outputs[answer] = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert outputs["yes"].stdout + outputs["yes"].stderr == ""
    assert "a warning" in outputs["no"].stderr and "%" in outputs["no"].stderr


def test_silence_reaches_every_library():
    """What each library says of itself afterwards; put back, for the other tests."""
    import datasets
    import evaluate
    import huggingface_hub

    libraries = (transformers.utils.logging, datasets.utils.logging, evaluate.logging, huggingface_hub.logging)
    before = [library.get_verbosity() for library in libraries]
    try:
        silence()
        assert {library.get_verbosity() for library in libraries} == {40}
        assert datasets.are_progress_bars_disabled() and huggingface_hub.utils.are_progress_bars_disabled()
        assert not transformers.utils.logging.is_progress_bar_enabled()
    finally:
        for library, level in zip(libraries, before):
            library.set_verbosity(level)
        datasets.enable_progress_bars()
        huggingface_hub.utils.enable_progress_bars()
