"""The trace: what is refused, and what survives a trip to disk."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.provenance import checkout, provenance
from fwl_lab.trace.schema import validate, with_units
from fwl_lab.trace.store import open_trace, save_trace


def _with_texts(trace: xr.Dataset, texts: list[str]) -> xr.Dataset:
    return trace.assign_coords({schema.TOKEN_TEXT: (schema.TOKEN, text_array(texts))})


def test_round_trip_keeps_everything(tmp_path):
    texts = ["\x00", "a\x00", "\n", "\r", "🙂👩‍🚀", "", "</script>", "\u202e", "\ufffd", '"']
    trace = _with_texts(make_trace(tokens=10, documents=2), texts)
    back = open_trace(save_trace(trace, tmp_path / "deep" / "trace.zarr"))
    xr.testing.assert_identical(back.load(), trace)
    assert back[schema.TOKEN_TEXT].values.tolist() == texts
    assert back[schema.NLL].attrs[schema.UNITS] == "nat"


def test_open_reads_arrays_only_when_used(tmp_path):
    path = save_trace(make_trace(), tmp_path / "trace.zarr")
    chunk = next((path / schema.NLL / "c").rglob("0"))
    while chunk.is_dir():
        chunk = chunk / "0"
    trace = open_trace(path)
    chunk.write_bytes(b"broken")
    assert trace.sizes[schema.TOKEN] == 2000
    with pytest.raises(Exception, match=r"."):
        trace[schema.NLL].load()


def test_saving_over_a_trace_replaces_it_whole(tmp_path):
    path = tmp_path / "trace.zarr"
    save_trace(make_trace(seed=1, tokens=3000, documents=5), path)
    new = make_trace(seed=2, tokens=50, parameters=())
    save_trace(new, path)
    xr.testing.assert_identical(open_trace(path).load(), new)
    assert [child.name for child in tmp_path.iterdir()] == ["trace.zarr"]


def test_a_trace_can_be_changed_and_saved_over_itself(tmp_path):
    path = save_trace(make_trace(tokens=500), tmp_path / "trace.zarr")
    half = open_trace(path).isel({schema.TOKEN: slice(0, 250)}).drop_dims(schema.UPDATE)
    expected = half.copy(deep=True).load()
    save_trace(half, path)
    xr.testing.assert_identical(open_trace(path).load(), expected)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_save_leaves_the_old_trace_and_no_debris(tmp_path, monkeypatch, failing):
    old = make_trace(tokens=100)
    path = save_trace(old, tmp_path / "trace.zarr")
    rename, calls = os.rename, []

    def fail(source, destination):
        calls.append(destination)
        if len(calls) == failing:
            raise OSError("disk full")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        save_trace(make_trace(seed=3, tokens=100), path)
    xr.testing.assert_identical(open_trace(path).load(), old)
    assert [child.name for child in tmp_path.iterdir()] == ["trace.zarr"]


def test_what_is_not_a_trace_is_never_deleted(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a trace"):
        save_trace(make_trace(), folder)
    foreign = tmp_path / "foreign.zarr"
    xr.Dataset({"a": ("x", [1])}).to_zarr(foreign, consolidated=False)
    with pytest.raises(ValueError, match="not a trace"):
        save_trace(make_trace(), foreign)
    assert (folder / "chapter.txt").read_text() == "years of work"


def test_opening_what_is_not_there_or_not_a_trace(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trace at"):
        open_trace(tmp_path / "nothing.zarr")
    with pytest.raises(ValueError, match="not a trace"):
        open_trace(tmp_path)
    xr.Dataset({"a": ("x", [1])}).to_zarr(tmp_path / "foreign.zarr", consolidated=False)
    with pytest.raises(ValueError, match="not a trace"):
        open_trace(tmp_path / "foreign.zarr")


def test_opening_another_version_says_so(tmp_path):
    path = save_trace(make_trace(tokens=10), tmp_path / "trace.zarr")
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"][schema.SCHEMA_VERSION] = "fwl_lab.trace/99"
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"fwl_lab\.trace/99"):
        open_trace(path)


def _replace(name, values, **attrs):
    def change(trace):
        old = trace[name]
        return trace.assign({name: (old.dims, values(old.values.copy()), {**old.attrs, **attrs})})

    return change


def _at(index, value):
    def change(values):
        values[index] = value
        return values

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_vars(schema.NLL), "'nll' is missing"),
        (lambda t: t.drop_vars(schema.TOKEN_TEXT), "'token_text' is missing"),
        (lambda t: t.drop_vars(schema.UPDATE_TOKEN), "'update_token' is missing"),
        (lambda t: t.transpose(schema.TOKEN, ...), r"'nll' has dimensions \('token', 'reader'\)"),
        (_replace(schema.NLL, lambda v: v.astype(np.float32)), "'nll' has dtype float32, expected float64"),
        (_replace(schema.TOKEN_ID, lambda v: v.astype(float)), "'token_id' has dtype float64"),
        (_replace(schema.TOKEN_TEXT, lambda v: v.astype("<U20")), "'token_text' has dtype <U20"),
        (_replace(schema.NLL, lambda v: v, units="bit"), "'nll' has units 'bit', expected 'nat'"),
        (_replace(schema.NLL, _at((1, 7), np.nan)), "first reader 'static', token 7"),
        (_replace(schema.NLL, _at((3, 9), np.inf)), "first reader 'fwl', token 9"),
        (_replace(schema.DOCUMENT, lambda v: v[::-1]), "'document' falls at token"),
        (_replace(schema.DOCUMENT, lambda v: v + 1), "'document' runs from 1 to 3"),
        (_replace(schema.POSITION, _at(5, 4)), "'position' is 4 at token 5, expected 5"),
        (_replace(schema.UPDATE_TOKEN, lambda v: v + 10**6), "'update_token' must rise within"),
        (_replace(schema.UPDATE_TOKEN, lambda v: v * 0), "'update_token' must rise within"),
        (lambda t: t.isel({schema.TOKEN: slice(0, 0)}), "no token"),
        (lambda t: t.isel({schema.READER: [0, 0]}), "different names"),
        (lambda t: t.assign_attrs({schema.SCHEMA_VERSION: "2"}), "attribute 'schema_version' is '2'"),
        (lambda t: t.assign_attrs({schema.READERS: "{"}), "not JSON"),
        (lambda t: t.assign_attrs({schema.READERS: "{}"}), "describes"),
    ],
)
def test_validate_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        validate(change(make_trace()))


def test_validate_without_values_reads_no_numbers():
    broken = _replace(schema.NLL, _at((0, 0), np.nan))(make_trace())
    assert validate(broken, values=False) is broken


def _full_trace() -> xr.Dataset:
    """Every optional variable of the schema, for one matrix (W1) and one vector (b1)."""
    trace = make_trace(tokens=40, documents=1, readers=("base", "fwl"), parameters=("W1", "b1"))
    sizes = dict(trace.sizes) | {schema.TOP: 3, schema.RANK: 4}
    sizes |= {schema.row_dim("W1"): 5, schema.col_dim("W1"): 2, schema.row_dim("b1"): 5}
    W1, b1 = (schema.row_dim("W1"), schema.col_dim("W1")), (schema.row_dim("b1"),)
    reader_update = (schema.READER, schema.UPDATE)
    dims = {
        schema.delta_name("W1"): (schema.TOKEN, W1[0]),
        schema.key_name("W1"): (schema.TOKEN, W1[1]),
        schema.fast_weight_name("W1"): reader_update + W1,
        schema.delta_name("b1"): (schema.TOKEN, *b1),
        schema.fast_weight_name("b1"): reader_update + b1,
        **{name: field.dims for name, field in schema.FIELDS.items() if name not in trace.variables},
    }
    dtypes = {"iu": "i8", "b": "?"}
    kinds = {name: schema.FIELDS[name].kinds if name in schema.FIELDS else "f" for name in dims}
    ones = {name: (d, np.ones([sizes[x] for x in d], dtypes.get(kinds[name], "f8"))) for name, d in dims.items()}
    return with_units(trace.assign(ones).set_coords(schema.DOCUMENT_BYTES))


def test_every_optional_variable_is_accepted_and_stored(tmp_path):
    trace = _full_trace()
    assert set(schema.FIELDS) <= set(trace.variables)
    xr.testing.assert_identical(open_trace(save_trace(trace, tmp_path / "trace.zarr")).load(), trace)


@pytest.mark.parametrize(
    "name", [schema.key_name("W1"), schema.fast_weight_name("b1"), schema.RETENTION, schema.TOP_LOG_PROB]
)
def test_optional_variables_are_checked_too(name):
    trace = _full_trace()
    with pytest.raises(ValueError, match=f"'{name}' has dimensions"):
        validate(trace.assign({name: trace[name].transpose(*reversed(trace[name].dims))}))
    trace[name].attrs.pop(schema.UNITS)
    with pytest.raises(ValueError, match=f"'{name}' has units None"):
        validate(trace)


def test_a_lone_surrogate_is_named():
    with pytest.raises(ValueError, match=r"text 1 \('a\\ud800'\) holds a lone surrogate"):
        text_array(["fine", "a\ud800"])


def test_provenance_names_versions_and_commit():
    made = provenance()
    assert json.loads(made[schema.VERSIONS])["numpy"] == np.__version__
    assert made[schema.COMMIT] == schema.UNKNOWN or len(made[schema.COMMIT]) == 40
    assert made[schema.DIRTY] in ("true", "false", schema.UNKNOWN)
    assert made[schema.CREATED].endswith("+00:00")


def test_another_projects_commit_is_not_ours(tmp_path):
    assert checkout(tmp_path) == (schema.UNKNOWN, schema.UNKNOWN)
    inner = Path(schema.__file__).resolve().parents[1]
    assert checkout(inner) == (schema.UNKNOWN, schema.UNKNOWN)


def test_make_trace_is_deterministic_and_seeded():
    assert make_trace(seed=5).identical(make_trace(seed=5))
    assert not make_trace(seed=5).identical(make_trace(seed=6))
    with pytest.raises(ValueError, match="cannot spread 2 tokens over 3 documents"):
        make_trace(tokens=2)
