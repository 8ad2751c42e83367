"""The README's Python example runs as it stands, with a small model in the place of MODEL."""

import re
from pathlib import Path

import folders
import torch

README = Path(__file__).parents[1] / "README.md"


def test_python_example(tmp_path, capsys):
    model = folders.save_ann(tmp_path / "ann")
    text = Path(folders.save_text(tmp_path / "text.txt", 120)).read_text().replace("\n\n", " ")
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    names = {"MODEL": model, "TEXT": text, "OUT": str(tmp_path / "out")}
    code = code.replace('"The with statement"', '"w1 w2 w3"')  # words of the small tokenizer
    exec(compile(code, str(README), "exec"), names)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(names["spiking"](input_ids=ids).logits, names["model"](input_ids=ids).logits)
    assert len(capsys.readouterr().out.split()) > 8


def test_commands_exist():
    """Every ``fas`` command and flag of the README is one that the program has."""
    from typer.main import get_command

    from fas.cli import app

    commands = get_command(app).commands
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL))
    used = re.findall(r"^fas (\w+)(.*?)(?:#.*)?$", shell, re.MULTILINE)
    assert {"inspect", "convert", "eval", "generate"} <= {name for name, _ in used}
    for name, rest in used:
        flags = {flag for option in commands[name].params for flag in option.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= flags, name
