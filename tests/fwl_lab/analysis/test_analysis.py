"""Analysis against the same figures computed the slow and obvious way."""

import math
from collections import Counter

import numpy as np
import pytest

from fwl_lab import analysis
from fwl_lab.analysis.bootstrap import Bootstrap, Units, block_length
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array


@pytest.fixture(scope="module")
def trace():
    return make_trace(tokens=3000, documents=12)


def _columns(trace, reader="fwl"):
    nll = trace[schema.NLL]
    return (
        trace[schema.DOCUMENT].values.tolist(),
        trace[schema.TOKEN_ID].values.tolist(),
        (nll.sel(reader="base") - nll.sel(reader=reader)).values.tolist(),
    )


def test_gain_is_baseline_minus_reader_and_leaves_the_baseline_out(trace):
    gain = analysis.gain(trace)
    assert gain.reader.values.tolist() == ["static", "dynamic_evaluation", "fwl"]
    assert gain.attrs[schema.UNITS] == "nat"
    np.testing.assert_array_equal(gain.sel(reader="fwl").values, _columns(trace)[2])
    against = analysis.gain(trace, baseline="dynamic_evaluation").sel(reader="fwl")
    np.testing.assert_array_equal(
        against, trace.nll.sel(reader="dynamic_evaluation").values - trace.nll.sel(reader="fwl").values
    )


def test_an_unknown_reader_is_named_with_those_there_are(trace):
    with pytest.raises(
        ValueError, match="no reader 'fLw' in this trace; it holds base, static, dynamic_evaluation, fwl"
    ):
        analysis.gain(trace, baseline="fLw")
    with pytest.raises(ValueError, match="no reader 'x'"):
        analysis.summary(trace, relative_to="x")


def test_summary_by_hand(trace):
    document, _, _ = _columns(trace)
    nll = trace.nll.sel(reader="fwl").values.tolist()
    row = analysis.summary(trace).sel(reader="fwl")
    averages = [sum(n for n, d in zip(nll, document, strict=True) if d == k) / document.count(k) for k in set(document)]
    size = sum(len(text.encode()) for text in trace.token_text.values.tolist())
    assert float(row.nats_per_token) == pytest.approx(sum(nll) / 3000, abs=1e-12)
    assert float(row.nats_per_token_per_document) == pytest.approx(sum(averages) / len(averages), abs=1e-12)
    assert float(row.bits_per_byte) == pytest.approx(sum(nll) / math.log(2) / size, abs=1e-12)
    assert float(row.token_perplexity) == pytest.approx(math.exp(sum(nll) / 3000), abs=1e-9)
    texts = ["".join(t for t, d in zip(trace.token_text.values.tolist(), document, strict=True) if d == k)
             for k in range(12)]  # fmt: skip
    words = sum(len(text.split()) for text in texts)
    assert float(row.nats_per_word) == pytest.approx(sum(nll) / words)
    assert float(row.word_perplexity) == pytest.approx(float(row.token_perplexity) ** (3000 / words))
    seconds = trace.seconds.sel(reader="fwl").item()
    assert float(row.tokens_per_second) == pytest.approx(3000 / seconds)
    assert float(row.time_ratio) == pytest.approx(seconds / trace.seconds.sel(reader="base").item())
    static = analysis.summary(trace, relative_to="static")
    assert float(static.time_ratio.sel(reader="static")) == 1.0


def test_summary_of_a_trace_without_times_has_no_speed(trace):
    names = set(analysis.summary(trace.drop_vars(schema.SECONDS)).data_vars)
    assert names == set(analysis.summary(trace).data_vars) - {analysis.TOKENS_PER_SECOND, analysis.TIME_RATIO}


def test_cumulative_sums_start_afresh_in_each_document(trace):
    document, _, gains = _columns(trace)
    nll = trace.nll.sel(reader="fwl").values.tolist()
    for values, result in ((nll, analysis.cumulative_nll(trace)), (gains, analysis.cumulative_gain(trace))):
        expected: list[float] = []
        for t, value in enumerate(values):
            expected.append(value + (expected[-1] if t and document[t] == document[t - 1] else 0.0))
        np.testing.assert_allclose(result.sel(reader="fwl").values, expected, atol=1e-9)
        assert result.attrs[schema.UNITS] == "nat"


def _means(keys, gains):
    total: Counter = Counter()
    count: Counter = Counter()
    for key, value in zip(keys, gains, strict=True):
        total[key] += value
        count[key] += 1
    return {key: (total[key] / count[key], count[key]) for key in sorted(total)}


def _check(result, keys, trace):
    """Means, token counts and document counts of a breakdown against plain Python."""
    document, _, gains = _columns(trace)
    expected = _means(keys, gains)
    row = result.sel(reader="fwl")
    assert row.start.values.tolist() == list(expected)
    np.testing.assert_allclose(row[analysis.MEAN].values, [mean for mean, _ in expected.values()], atol=1e-12)
    assert row[analysis.TOKEN_COUNT].values.tolist() == [count for _, count in expected.values()]
    held = [len({d for d, k in zip(document, keys, strict=True) if k == key}) for key in expected]
    assert row[analysis.DOCUMENT_COUNT].values.tolist() == held
    assert result[analysis.MEAN].attrs[schema.UNITS] == "nat/token"
    several = np.array(held) > 1
    low, mean, high = (row[name].values[several] for name in (analysis.LOW, analysis.MEAN, analysis.HIGH))
    assert ((low <= mean) & (mean <= high)).all()
    assert (high - low > 0).all()
    assert np.isnan(row[analysis.LOW].values[~several]).all()


def test_gain_by_position_by_hand(trace):
    keys = [position // 100 * 100 for position in trace.position.values.tolist()]
    result = analysis.gain_by_position(trace, 100)
    _check(result, keys, trace)
    assert result.label.values[1] == "100–199"
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        analysis.gain_by_position(trace, 0)


def test_gain_by_occurrence_by_hand(trace):
    document, ids, _ = _columns(trace)
    seen: Counter = Counter()
    keys = []
    for pair in zip(document, ids, strict=True):
        keys.append(max(start for start in (0, 1, 2, 3, 5, 9, 17) if start <= seen[pair]))
        seen[pair] += 1
    result = analysis.gain_by_occurrence(trace)
    _check(result, keys, trace)
    assert result.label.values.tolist() == ["0", "1", "2", "3–4", "5–8", "9–16", "17+"]


def test_gain_by_frequency_by_hand(trace):
    counts = np.random.default_rng(0).integers(0, 7, 400)
    counts = np.where(counts > 0, 10**counts - 1, 0)  # 0, 9, 99, ...: the last of each bin
    keys = [0 if counts[i] == 0 else 10 ** (len(str(counts[i])) - 1) for i in trace.token_id.values.tolist()]
    result = analysis.gain_by_frequency(trace, counts)
    _check(result, keys, trace)
    assert result.label.values.tolist() == ["never seen", "1–9", "10–99", "100–999", "1k–10k", "10k–100k", "100k–1M"]
    for wrong in (np.ones(3), np.ones((400, 1)), -np.ones(400)):
        with pytest.raises(ValueError, match="one number, 0 or more, for each token id"):
            analysis.gain_by_frequency(trace, wrong)


def test_paired_bootstrap_by_hand(trace):
    document, _, gains = _columns(trace)
    averages = [mean for mean, _ in _means(document, gains).values()]
    result = analysis.paired_bootstrap(trace).sel(reader="fwl")
    micro, per_document = result[analysis.MEAN].values
    assert micro == pytest.approx(sum(gains) / 3000, abs=1e-12)
    assert per_document == pytest.approx(sum(averages) / 12, abs=1e-12)
    # The interval of a mean of 12 documents, by resampling them one at a time.
    rng = np.random.default_rng(1)
    draws = [np.mean(rng.choice(averages, 12)) for _ in range(4000)]
    width = np.ptp(np.quantile(draws, [0.025, 0.975]))
    got = result[analysis.HIGH].values[1] - result[analysis.LOW].values[1]
    assert got == pytest.approx(width, rel=0.1)


def test_intervals_are_seeded_and_widen_with_the_level(trace):
    narrow, wide = (analysis.paired_bootstrap(trace, bootstrap=Bootstrap(level=level)) for level in (0.5, 0.99))
    assert (wide.high - wide.low > narrow.high - narrow.low).all()
    assert narrow.identical(analysis.paired_bootstrap(trace, bootstrap=Bootstrap(level=0.5)))
    for wrong in ({"resamples": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="at least 1 and level between 0 and 1"):
            Bootstrap(**wrong)


def test_block_bootstrap_covers_the_mean_of_correlated_tokens():
    """On an AR(1) series, where tokens are far from independent, a 90 % interval still holds about 90 % of means."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(100):
        noise = rng.normal(size=4096)
        series = np.empty(4096)
        level = 0.0
        for t in range(4096):
            level = 0.8 * level + noise[t]
            series[t] = level
        zeros = np.zeros(4096, dtype=int)
        _, low, high = Units.of(series[None], zeros, zeros, 1).intervals(Bootstrap(resamples=400, level=0.9))
        covered += low[0, 0] <= 0 <= high[0, 0]
        naive += abs(series.mean()) <= 1.645 * series.std() / 64
    assert 80 <= covered <= 97
    assert naive < 60


def test_one_document_gets_intervals_from_blocks():
    trace = make_trace(tokens=2000, documents=1)
    result = analysis.gain_by_position(trace, 500)
    assert result.attrs["resampled"] == "blocks of one document"
    assert np.isfinite(result.low).all()
    assert (result.low < result.high).all()
    assert [block_length(n) for n in (1, 100, 1000, 4096, 10**6)] == [1, 25, 64, 64, 15625]


def test_the_baseline_against_itself_gains_nothing(trace):
    twin = trace.assign({schema.NLL: trace.nll * 0 + trace.nll.isel(reader=0)})
    result = analysis.paired_bootstrap(twin)
    assert (result[analysis.MEAN] == 0).all()
    assert (result[analysis.LOW] == 0).all()


def test_words_are_between_whitespace_and_within_a_document():
    trace = make_trace(tokens=6, documents=2)
    assert trace.document.values.tolist() != [0] * 6
    cut = trace.assign_coords(
        document=("token", [0, 0, 0, 1, 1, 1]),
        token_text=("token", text_array(["ab", "c d", "e", "f", "\n ", "\u3000g"])),
    )
    assert analysis.word_count(cut) == 4  # abc de | f g
    blank = cut.assign_coords(token_text=("token", text_array([" "] * 6)))
    assert np.isnan(analysis.summary(blank).word_perplexity).all()
    hard = cut.assign(nll=cut.nll * 0 + 1000.0)
    assert np.isinf(analysis.summary(hard).token_perplexity).all()


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("word", ["def", " return", "_", "é", "日本", "x1", "\n    self", " if\n"]),
        ("number", ["42", " 0x1f", "1.5e", "1_000", "٣", "2."]),
        ("punctuation", ["(", " == ", "...", "…", "$", "«", "+=\n"]),
        ("whitespace", [" ", "\n    ", "\t", "\u3000"]),
        ("other", ["", "[0]", "self.", "🙂", "\x00", "\u202e", "<script>", "²"]),
    ],
)
def test_the_class_of_a_token(kind, texts):
    assert {text: analysis.token_class(text) for text in texts} == dict.fromkeys(texts, kind)


def _check_shares(result, keys, trace):
    document, _, gains = _columns(trace)
    row = result.sel(reader="fwl")
    for label in set(keys):
        mine = [g for g, k in zip(gains, keys, strict=True) if k == label]
        held = {d for d, k in zip(document, keys, strict=True) if k == label}
        bucket = row.isel(bucket=row.label.values.tolist().index(label))
        assert float(bucket["mean"]) == pytest.approx(sum(mine) / len(mine))
        assert (int(bucket.tokens), int(bucket.documents)) == (len(mine), len(held))
        assert float(bucket.share) == pytest.approx(sum(mine) / sum(gains))
        assert bucket.share_low <= bucket.share <= bucket.share_high
    assert sorted(set(keys)) == sorted(row.label.values.tolist())
    np.testing.assert_allclose(result.share.sum("bucket"), 1.0)
    assert result.share.attrs[schema.UNITS] == "1"


def test_gain_by_token_class_by_hand(trace):
    keys = [analysis.token_class(text) for text in trace.token_text.values.tolist()]
    assert set(keys) == set(analysis.TOKEN_CLASSES)
    _check_shares(analysis.gain_by_token_class(trace), keys, trace)
    only = trace.isel(token=np.array(keys) == "number")
    assert analysis.gain_by_token_class(only).label.values.tolist() == ["number"]


def test_gain_by_repetition_by_hand(trace):
    document, ids, _ = _columns(trace)
    seen, keys = set(), []
    for pair in zip(document, ids, strict=True):
        keys.append("repeat" if pair in seen else "first occurrence")
        seen.add(pair)
    _check_shares(analysis.gain_by_repetition(trace), keys, trace)


def test_a_share_of_two_documents_by_hand():
    """Documents of gains (1 in bucket 0, 3 in bucket 1) and (2, 2): replicates are one twice, or both."""
    units = Units.of(np.array([[1.0, 3.0, 2.0, 2.0]]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), 2)
    share, low, high = units.shares(Bootstrap())
    assert share.tolist() == [[3 / 8, 5 / 8]]
    assert low.tolist() == [[1 / 4, 1 / 2]]
    assert high.tolist() == [[1 / 2, 3 / 4]]
