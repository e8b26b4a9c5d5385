"""Data that are downloaded, rMD17 and QM9: what is read, with which units, and what a user is told when something is wrong."""

import bz2
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from simkit.datasets import load, qm9_archive, rmd17
from simkit.datasets.download import fetch
from simkit.errors import ConfigError, DataError
from simkit.units import BOHR, DEBYE, HARTREE, KCAL_PER_MOL

# ------------------------------------------------------------------------------------------------------------- rMD17


def rmd17_arrays(frames: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(frames)
    return {
        "nuclear_charges": np.array([8, 1, 1], dtype=np.uint8),
        "coords": rng.normal(size=(frames, 3, 3)),
        "energies": rng.normal(size=frames) - 47000.0,
        "forces": rng.normal(size=(frames, 3, 3)),
        "old_indices": np.arange(frames) * 10,
    }


def test_rmd17_files(tmp_path: Path) -> None:
    arrays = rmd17_arrays(20)
    index = np.random.default_rng(0).permutation(20)[:5]
    (tmp_path / "npz_data").mkdir()
    (tmp_path / "splits").mkdir()
    np.savez(tmp_path / "npz_data" / "rmd17_uracil.npz", **arrays)
    np.savetxt(tmp_path / "splits" / "index_train_01.csv", index, fmt="%d")
    whole = load("rmd17", molecule="uracil", split=None, root=tmp_path)
    assert len(whole) == 20
    store = load("rmd17", molecule="uracil", root=tmp_path)
    np.testing.assert_allclose(store.labels["energy"], arrays["energies"][index] * KCAL_PER_MOL, rtol=1e-15)
    np.testing.assert_allclose(store.labels["forces"], arrays["forces"][index].reshape(-1, 3) * KCAL_PER_MOL)
    np.testing.assert_array_equal(store.columns["old_indices"], index * 10)
    part = {key: value if key == "nuclear_charges" else value[index] for key, value in arrays.items()}
    other = tmp_path / "other"
    other.mkdir()
    np.savez(other / "rmd17_uracil_train_01.npz", **part)
    assert load("rmd17", molecule="uracil", root=other).hash() == store.hash()
    with pytest.raises(DataError, match=r"expected rmd17_uracil_test_01\.npz, or .*index_test_01\.csv"):
        load("rmd17", molecule="uracil", split="test_01", root=other)
    with pytest.raises(ConfigError, match="unknown molecule 'uracill'; did you mean 'uracil'"):
        load("rmd17", molecule="uracill", root=other)
    with pytest.raises(ConfigError, match="unknown split 'train_1'; did you mean 'train_01'"):
        load("rmd17", molecule="uracil", split="train_1", root=other)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No reference data and an empty cache."""
    monkeypatch.delenv("SIMKIT_DATA_DIR", raising=False)
    monkeypatch.setenv("SIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_rmd17_is_downloaded_when_absent(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = empty_home / "source.tar.bz2"
    with tarfile.open(archive, "w:bz2") as tar:
        for name, content in (
            ("npz_data/rmd17_uracil.npz", None),
            ("splits/index_train_01.csv", b"3\n1\n"),
            ("readme", b""),
        ):
            stream = io.BytesIO()
            if content is None:
                np.savez(stream, **rmd17_arrays(4))
                content = stream.getvalue()
            member = tarfile.TarInfo(f"rmd17/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(rmd17, "URL", archive.as_uri())
    monkeypatch.setattr(rmd17, "_SHA256", "0" * 64)
    with pytest.raises(DataError, match="the download was cut off or replaced"):
        load("rmd17", molecule="uracil")
    monkeypatch.setattr(rmd17, "_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    store = load("rmd17", molecule="uracil")
    np.testing.assert_allclose(store.labels["energy"], rmd17_arrays(4)["energies"][[3, 1]] * KCAL_PER_MOL)
    archive.unlink()
    assert load("rmd17", molecule="uracil").hash() == store.hash()  # from the cache


def test_a_failed_download_says_what_to_do(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    with pytest.raises(DataError, match=r"cannot download file:///.*download it by hand and save it as .*file\.bin"):
        fetch((tmp_path / "absent").as_uri(), target, "0")
    assert list(target.parent.iterdir()) == []
    target.write_bytes(b"damaged")
    with pytest.raises(DataError, match="is damaged"):
        fetch((tmp_path / "absent").as_uri(), target, "0")


@pytest.mark.data
def test_rmd17_reference_files(data_dir: Path) -> None:
    for molecule in set(rmd17.MOLECULES) - {"malonaldehyde", "uracil"}:
        store = load("rmd17", molecule=molecule, split="test_01", root=data_dir / "rmd17")
        assert len(store) == 1000
        assert len(set(store.formulas().tolist())) == 1
        assert store.info["level_of_theory"] == "PBE/def2-SVP"
        assert "WARNING" not in store.describe()
    with np.load(data_dir / "rmd17" / "rmd17_toluene_test_01.npz") as arrays:
        energies = arrays["energies"]
    store = load("rmd17", molecule="toluene", split="test_01", root=data_dir)
    np.testing.assert_allclose(store.labels["energy"], energies * 0.0433641043, rtol=1e-7)


# --------------------------------------------------------------------------------------------------------------- QM9


METHANE = r"""5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t
-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 9.063972942*^-1\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""
WATER = r"""3
gdb 3\t799.58812\t437.90386\t282.94545\t1.8511\t6.31\t-0.2928\t0.0687\t0.3615\t19.0002\t2.1375*^-2\t
-76.404702\t-76.401867\t-76.400922\t-76.422349\t6.002\t
O\t-0.0343604951\t 0.9775395708\t 0.0076015923\t-0.589706
H\t 0.0647664923\t 0.0205721989\t 0.0015346341\t 0.294853
H\t 0.8717903737\t 1.3007924048\t 0.0069312682\t 0.294853
1671.4222\t3803.6305\t3907.698
O\tO\t
InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2
"""

# The second line of the original is a long one.
METHANE, WATER = (text.replace("\\t\n-", "\\t-").replace("\\t", "\t") for text in (METHANE, WATER))
HEADER = "\n" * 8 + "Index  SMILES\n"


def write_archive(path: Path, texts: dict[str, str]) -> None:
    with tarfile.open(path, "w:bz2") as tar:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def small_qm9(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The original files in small: methane, a molecule on the list of uncharacterised ones, and water."""
    archive, excluded = empty_home / "original.tar.bz2", empty_home / "excluded.txt"
    bad = METHANE.replace("gdb 1", "gdb 2")
    write_archive(
        archive, {"dsgdb9nsd_000003.xyz": WATER, "dsgdb9nsd_000001.xyz": METHANE, "dsgdb9nsd_000002.xyz": bad}
    )
    excluded.write_text(f"{HEADER}     2  C  C  0.5\n------\n")
    for name, value in {
        "ARCHIVE_URL": archive.as_uri(),
        "EXCLUDED_URL": excluded.as_uri(),
        "_ARCHIVE_MD5": md5(archive),
        "_EXCLUDED_MD5": md5(excluded),
        "_MOLECULES": 3,
        "_EXCLUDED": 1,
    }.items():
        monkeypatch.setattr(qm9_archive, name, value)
    return archive


def test_qm9_is_downloaded_parsed_and_cached(small_qm9: Path) -> None:
    store = load("qm9")
    assert store.formulas().tolist() == ["CH4", "H2O"]
    assert store.columns["gdb_id"].tolist() == [1, 3]
    assert store.columns["A"].tolist() == [157.7118, 799.58812]
    assert store.columns["smiles"].tolist() == ["C", "O"]
    assert store.columns["inchi"].tolist() == ["InChI=1S/CH4/h1H4", "InChI=1S/H2O/h1H2"]
    expected = {
        "energy": -76.404702 * HARTREE,
        "U0": -76.404702 * HARTREE,
        "G": -76.422349 * HARTREE,
        "zpve": 0.021375 * HARTREE,
        "gap": 0.3615 * HARTREE,
        "mu": 1.8511 * DEBYE,
        "alpha": 6.31 * BOHR**3,
        "r2": 19.0002 * BOHR**2,
        "Cv": 6.002e-3 * KCAL_PER_MOL,
    }
    assert {name: float(store.labels[name][1]) for name in expected} == pytest.approx(expected, rel=1e-12)
    assert store.labels["charges"].tolist()[3:6] == pytest.approx([0.133923, 0.133923, -0.589706], rel=1e-6)
    np.testing.assert_allclose(store.pos[4], [-0.5238136345, 1.4379326443, 0.9063972942], rtol=1e-7)
    assert store.info["references"]["U0"][1] == -0.500273 * HARTREE
    assert store.info["references"]["energy"] == store.info["references"]["U0"]
    small_qm9.unlink()
    again = load("qm9", target="G")  # from the cache
    np.testing.assert_array_equal(again.labels["energy"], store.labels["G"])
    assert again.info["references"]["energy"] == again.info["references"]["G"]
    with pytest.raises(ConfigError, match="unknown target 'U1'"):
        load("qm9", target="U1")


def test_qm9_archive_that_is_not_what_was_published(
    small_qm9: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qm9_archive, "_MOLECULES", 4)
    with pytest.raises(DataError, match="expected 4 molecules, found 3"):
        load("qm9")
    with pytest.raises(DataError, match="leave out root= to download"):
        load("qm9", root=empty_home)
    content = small_qm9.read_bytes()
    for name, raw in (("cut", content[: len(content) // 2]), ("broken", bz2.compress(b"no archive"))):
        (empty_home / name).write_bytes(raw)
        with pytest.raises(DataError, match="no complete QM9 archive"):
            qm9_archive.read_archive(empty_home / name, set())
    write_archive(small_qm9, {"dsgdb9nsd_000001.xyz": METHANE.replace("-0.535689", "")})
    with pytest.raises(DataError, match=r"dsgdb9nsd_000001\.xyz in .* is no QM9 file"):
        qm9_archive.read_archive(small_qm9, set())


@pytest.mark.data
def test_qm9_reference_file(data_dir: Path) -> None:
    store = load("qm9", root=data_dir / "qm9")
    assert len(store) == 130_829
    assert len(store.z) == 2_359_192
    atomization = store.labels["U0"][0] - sum(
        store.info["references"]["U0"][number] * count
        for number, count in zip(store.elements, store.composition()[0].tolist(), strict=True)
    )
    assert float(atomization) == pytest.approx(-395.999594594 * KCAL_PER_MOL, abs=1e-4)  # published for methane
    assert "WARNING" not in store.describe()
