// Numbers and token texts as people read them. Pure functions: node tests them without a browser.

export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
export const whole = (n) => n.toLocaleString("en-US");
export const fixed = (x, digits = 2) => (Number.isFinite(x) ? x.toFixed(digits).replace("-", "−") : "not finite");
export const signed = (x, digits = 2) => (Number.isFinite(x) && x >= 0 ? "+" : "") + fixed(x, digits);

/** Write a number with three significant digits, with a power of ten where that is shorter. */
export function brief(x) {
  if (!Number.isFinite(x)) return "not finite";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e-3 && size < 1e5) return String(Number(x.toPrecision(3))).replace("-", "−");
  const [digits, power] = x.toExponential(1).split("e");
  const raised = [...power].map((c) => ({ "-": "⁻", "+": "" })[c] ?? "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("");
  return `${digits.replace("-", "−")} × 10${raised}`;
}

/** Write a count with its noun: 1 token, 2,000 tokens. */
export const many = (count, what) => `${whole(count)} ${what}${count === 1 ? "" : "s"}`;

// Characters that format, control or are blank, and would be invisible or change the page. Joiners inside emoji may stay.
export const ACTING = /(?![\u200d ])[\p{Cc}\p{Cf}\p{Z}\p{Cn}\p{Cs}\u115f\u1160\u2800\u3164\uffa0]/u;
// Shown for a token without a text of its own: a later byte of a character that an earlier token shows.
export const PART = "‧";

/** Return a visible stand-in for such a character: Unicode's control picture where there is one, else its code point. */
export function symbol(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  return code === 0x7f ? "␡" : `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** Write a token's text on one line; line breaks, tabs, controls and spaces at its ends are made visible. */
export function printable(text) {
  const inner = [...text].map((c) => (c === "\n" ? "↵" : c === "\t" ? "⇥" : ACTING.test(c) ? symbol(c) : c)).join("");
  const marked = inner.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  return marked === "" ? PART : marked;
}
