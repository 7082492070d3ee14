// ReaderCompare's figures: gains over the selected baseline between points of the trace, from sums of NLL.

import { readerStyle } from "../../core/js/theme.js";

/**
 * Return gains of readers over the selected baseline. `at` holds the tokens before each point; `sums` the sum of NLL
 * [nat] of the tokens before it, a row of points for each reader of `head.order`.
 */
export function comparison(head, { at, sums }, place) {
  const readers = head.order, points = at.length;
  const known = (name, otherwise) => (readers.includes(name) ? name : otherwise);
  const chosen = () => known(place.get("reader"), readers.at(-1));
  const baseline = () => known(place.get("baseline"), readers[0]);
  const style = (name) => readerStyle(head, name);
  const sum = (name, i) => sums[readers.indexOf(name) * points + i];
  /** Return the last point that is not after a token. */
  function pointOf(token) {
    let low = 0, high = points - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (at[middle] <= token) low = middle;
      else high = middle - 1;
    }
    return low;
  }
  /** Return the point nearest to a token. */
  function nearest(token) {
    const i = pointOf(token);
    return i + 1 < points && at[i + 1] - token < token - at[i] ? i + 1 : i;
  }
  /** Return the mean gain [nat/token] from one point to another; null where it is not finite. */
  function gainBetween(name, i, j) {
    const mean = (sum(baseline(), j) - sum(baseline(), i) - sum(name, j) + sum(name, i)) / (at[j] - at[i]);
    return Number.isFinite(mean) ? mean : null;
  }
  const inside = (token) => ([, start, stop]) => start <= token && token < stop;
  return {
    at, points, readers, chosen, baseline, style, sum, pointOf, nearest, gainBetween,
    label: (name) => style(name).label,
    others: () => readers.filter((name) => name !== baseline()),
    whole: (name) => gainBetween(name, 0, points - 1),
    documentOf: (token) => head.documents.find(inside(token)) ?? head.documents.at(-1),
  };
}
