"""The command line: what the user types, sees and gets as exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk, molecule
from ase.io import read, write
from shell import TINY, run

import simkit
from simkit import potentials

COMMANDS = [
    "train",
    "compare",
    "evaluate",
    "predict",
    "info",
    "md",
    "relax",
    "eos",
    "verify",
    "bench",
    "analyze",
    "label",
    "sample",
    "active",
    "infer",
    "simulators",
    "models",
    "quickstart",
]


@pytest.fixture(scope="session")
def argon_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("argon") / "argon.safetensors"
    potentials.build("lennard_jones", cutoff=8.0, elements=[18]).save(path)
    return path


# ------------------------------------------------------------------------------------------------------------ the shell


def test_help_does_not_wait_for_heavy_libraries() -> None:
    code = "import simkit.cli, sys; print(*{'torch', 'ase', 'numpy', 'pydantic', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not result.stdout.strip()


def test_help_and_version() -> None:
    status, text, _ = run("--help")
    assert status == 0
    assert all(command in text for command in COMMANDS)
    assert run("--version") == (0, f"simkit {simkit.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    status, text, _ = run(command, "--help")
    assert status == 0
    assert "Usage" in text


def test_the_process_exits_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    """As a process of its own: also nothing that torch or lightning would write on the user's terminal."""
    command = [sys.executable, "-c", "from simkit.cli import main; main()", "info", str(tmp_path / "no.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stdout == ""
    assert (
        result.stderr
        == f"error: no model file at {tmp_path / 'no.safetensors'}; expected a .safetensors file written by simkit\n"
    )


def test_an_unexpected_exception_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> str:
        raise RuntimeError("a mistake in simkit")

    monkeypatch.setattr("simkit.workflows.info.describe_file", broken)
    with pytest.raises(RuntimeError, match="a mistake in simkit"):
        run("info", "embedded")


@pytest.mark.parametrize(
    ("command", "target", "hint"),
    [
        (["train", "--out", "x"], "simkit.workflows.shell.train_model", "--resume"),
        (["md", "m", "s", "--out", "x"], "simkit.workflows.simulate.simulate", "--restart"),
        (["info", "m"], "simkit.workflows.info.describe_file", ""),
    ],
)
def test_an_interruption_says_how_to_continue(
    command: list[str], target: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupted)
    status, _, message = run(*command)
    assert status == 130
    assert message.startswith("interrupted")
    assert hint in message
    assert message.count("\n") == 1


# ------------------------------------------------------------------------------------------------------ what it does do


def test_train_evaluate_predict_and_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simkit.workflows.report.NVE_STEPS", 20)
    write(tmp_path / "frames.xyz", simkit.datasets.load("embedded").to_atoms(range(12)))
    command = ["train", "--data", tmp_path / "frames.xyz", *TINY, "--set", "split.valid=4", "--out", tmp_path / "out"]
    status, text, message = run(*command)
    assert (status, message) == (0, "")
    assert "12 structures" in text
    assert "forces" in text
    assert "meV/Å" in text
    assert f"simkit info {tmp_path / 'out' / 'model.safetensors'}" in text

    status, _, message = run(*command)
    assert status == 1
    assert "--resume" in message

    trained = tmp_path / "out" / "model.safetensors"
    status, text, _ = run("info", tmp_path / "out")
    assert status == 0
    assert "painn, channels=8, layers=1" in text
    assert "H C O" in text
    assert "valid" in text

    status, text, _ = run("evaluate", trained, tmp_path / "frames.xyz", "--out", tmp_path / "errors")
    assert status == 0
    assert "MAE of the mean" in text
    assert "the model was trained on structures of these data" in text
    assert (tmp_path / "errors" / "parity.png").stat().st_size > 1000
    assert run("evaluate", trained, tmp_path / "frames.xyz", "--out", tmp_path / "errors")[0] == 1
    assert run("evaluate", trained, tmp_path / "frames.xyz", "--out", tmp_path / "errors", "--overwrite")[0] == 0

    status, text, _ = run("predict", trained, f"{tmp_path / 'frames.xyz'}@:3", "-o", tmp_path / "p.xyz")
    assert status == 0
    assert "3 structures with energy, forces" in text
    assert len(read(tmp_path / "p.xyz", index=":")) == 3


def test_md_and_restart(tmp_path: Path, argon_model: Path) -> None:
    crystal = bulk("Ar", cubic=True) * (2, 2, 2)
    write(tmp_path / "argon.xyz", crystal)
    command = [
        "md",
        argon_model,
        tmp_path / "argon.xyz",
        "--out",
        tmp_path / "md",
        "--temperature",
        20,
        "--timestep",
        2,
    ]
    status, text, _ = run(*command, "--steps", 20)
    assert status == 0
    assert "drift" in text
    assert run(*command, "--steps", 20)[0] == 1
    status, text, _ = run(*command, "--steps", 30, "--restart")
    assert status == 0
    assert "10 steps now" in text
    assert len(read(tmp_path / "md" / "trajectory.traj", index=":")) == 4


def test_md_of_a_batch_at_constant_pressure(tmp_path: Path, argon_model: Path) -> None:
    write(tmp_path / "argon.xyz", [bulk("Ar", cubic=True) * (2, 2, 2), bulk("Ar", cubic=True, a=5.4) * (2, 2, 1)])
    command: list[object] = ["md", argon_model, tmp_path / "argon.xyz", "--ensemble", "npt", "--temperature", 20]
    command += ["--timestep", 2, "--steps", 20, "--replicas", 2, "--trajectory", "h5", "--dtype", "float64"]
    ramp = ["--set", "final_pressure=0.2", "--set", "ramp_steps=10", "--set", "compressibility=1e-1"]
    status, text, _ = run(*command, "--pressure", 0.1, *ramp, "--out", tmp_path / "md")
    assert status == 0
    for part in ("4 replicas, 96 atoms", "GPa", "drift"):
        assert part in text
    assert json.loads((tmp_path / "md" / "run.json").read_text())["ensemble"]["pressure"] != 0.1
    status, _, message = run(*command, "--set", "compresibility=0.1", "--out", tmp_path / "other")
    assert status == 1
    assert "did you mean 'compressibility'" in message


def test_md_may_stop_outside_the_training_domain(tmp_path: Path, argon_model: Path) -> None:
    write(tmp_path / "argon.xyz", bulk("Ar", cubic=True) * (2, 2, 2))
    command: list[object] = ["md", argon_model, tmp_path / "argon.xyz", "--stop-outside", "--out"]
    assert "does not know its training domain" in run(*command, tmp_path / "unknown")[2]
    potential = potentials.load(argon_model)
    potential.info["domain"] = {"closest": {"Ar-Ar": 4.5}}
    potential.save(tmp_path / "known.safetensors")
    command[1] = tmp_path / "known.safetensors"
    status, _, message = run(*command, tmp_path / "known")
    assert status == 1
    assert "left the training domain" in message
    assert (tmp_path / "known" / "last_good.xyz").is_file()


def test_relax_and_equation_of_state(tmp_path: Path, argon_model: Path) -> None:
    crystal = bulk("Ar", cubic=True, a=5.4)
    crystal.rattle(0.05, seed=0)
    write(tmp_path / "argon.xyz", crystal)
    status, _, message = run("relax", argon_model, tmp_path / "argon.xyz", "--steps", 1, "--out", tmp_path / "short")
    assert status == 1
    assert "not converged" in message
    assert (tmp_path / "short" / "relaxed.xyz").is_file()

    status, text, _ = run(
        "relax", argon_model, tmp_path / "argon.xyz", "--cell", "--fmax", 1e-4, "--out", tmp_path / "r"
    )
    assert status == 0
    assert "converged" in text

    relaxed = tmp_path / "r" / "relaxed.xyz"
    status, text, _ = run("eos", argon_model, relaxed, "--strain", 0.02, "--out", tmp_path / "eos")
    assert status == 0
    assert "GPa" in text
    volume = float(text.split("equilibrium volume ")[1].split()[0])
    assert volume == pytest.approx(read(relaxed).get_volume() / 4, rel=1e-3)
    assert {path.name for path in (tmp_path / "eos").iterdir()} == {"eos.csv", "eos.json", "eos.png"}
    assert run("eos", argon_model, relaxed, "--out", tmp_path / "eos")[0] == 1


def test_label_and_sample(tmp_path: Path) -> None:
    pytest.importorskip("tblite", reason="needs tblite (pip install 'simkit[xtb]')")
    write(tmp_path / "water.xyz", molecule("H2O"))
    drawn, labelled = tmp_path / "drawn.xyz", tmp_path / "labelled.xyz"
    options = ["--kind", "modes", "--temperatures", "300,600", "--frames", 4, "--seed", 1]
    status, text, _ = run("sample", tmp_path / "water.xyz", "--method", "gfn2-xtb", *options, "-o", drawn)
    assert status == 0
    assert "4 geometries of H2O" in text
    status, text, _ = run("label", drawn, "--method", "gfn2-xtb", "-o", labelled)
    assert status == 0
    assert "4 of 4 structures" in text
    assert all("forces" in atoms.calc.results for atoms in read(labelled, index=":"))
    assert run("label", drawn, "--method", "gfn2-xtb", "-o", labelled)[0] == 1
    status, _, message = run("sample", drawn, "--method", "gfn2-xtb", "-o", tmp_path / "x.xyz")
    assert status == 1
    assert "4 structures" in message
    command = ["sample", tmp_path / "water.xyz", "--method", "gfn2-xtb", "-o", tmp_path / "x.xyz"]
    assert "'hot'" in run(*command, "--temperatures", "hot")[2]
    assert "'mode'; did you mean 'modes'" in run(*command, "--kind", "mode")[2]


def test_models_lists_the_architectures_and_their_options() -> None:
    status, text, _ = run("models")
    assert status == 0
    assert all(name in text for name in potentials.available())
    assert "channels=128" in text
