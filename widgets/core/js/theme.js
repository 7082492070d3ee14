// Colours: of the page's theme, of magnitudes and differences, of readers.

import { clamp } from "./format.js";

// The inks read at a contrast of 4.5 : 1 or more on the ground and on all of the diverging scale.
const LIGHT = { dark: false, ground: "#ffffff", ink: "#1b1f24", muted: "#5b6470", line: "#d5d9e0", better: "#5aa9e8",
  worse: "#f5a04e", accent: "#1c65b0", focus: "#1c65b0" };
const DARK = { dark: true, ground: "#14171c", ink: "#eceff4", muted: "#9aa3b0", line: "#353b45", better: "#1c65b0",
  worse: "#9c530c", accent: "#5aa9e8", focus: "#5aa9e8" };

/** Tell whether the page is dark: by JupyterLab's theme, elsewhere by the page's or the system's colour scheme. */
export function isDark() {
  const lab = document.body.dataset.jpThemeLight;
  if (lab !== undefined) return lab === "false";
  const scheme = document.documentElement.style.colorScheme;
  return scheme ? scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Return the colours of the theme: ground, ink, muted ink, lines, ends of the diverging scale, accents. */
export function palette() {
  const own = isDark() ? DARK : LIGHT;
  return { ...own, ground: themeGround(own.ground) };
}

const grounds = new Map();
let mixer = null;
/** Return the ground of JupyterLab's theme as "#rrggbb", or `otherwise` where there is none. */
function themeGround(otherwise) {
  const told = getComputedStyle(document.body).getPropertyValue("--jp-layout-color0").trim();
  if (!grounds.has(told)) {
    mixer ??= document.createElement("canvas").getContext("2d");
    mixer.fillStyle = otherwise;
    mixer.fillStyle = told; // a text that is no colour changes nothing
    grounds.set(told, told !== "" && mixer.fillStyle.length === 7 ? mixer.fillStyle : null);
  }
  return grounds.get(told) ?? otherwise;
}

/** Call `callback` whenever the theme changes, until `signal` aborts. */
export function onTheme(callback, signal) {
  const watcher = new MutationObserver(callback);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  watcher.observe(document.documentElement, { attributes: true, attributeFilter: ["style"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", callback, { signal });
  signal.addEventListener("abort", () => watcher.disconnect());
}

/** Tell whether the system asks for less motion. */
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const CIVIDIS = [
  "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
].map(channels);
export const css = ([r, g, b]) => `rgb(${Math.round(r)}, ${Math.round(g)}, ${Math.round(b)})`;
export const blend = (from, to, share) => from.map((value, i) => value + (to[i] - value) * share);

/**
 * Return cividis at a share of 0..1 as [r, g, b]. In a light theme it is reversed, so that small values are near the
 * ground in both themes.
 */
export function magnitude(share, dark = isDark()) {
  const at = clamp(dark ? share : 1 - share, 0, 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return blend(CIVIDIS[low], CIVIDIS[low + 1], at - low);
}

/** Return the colour of a share of −1..1 as [r, g, b]: from orange (worse) over the ground to blue (better). */
export function diverging(share, colours = palette()) {
  return blend(channels(colours.ground), channels(share > 0 ? colours.better : colours.worse), Math.min(Math.abs(share), 1));
}

/** Return black or white, whichever has more contrast on [r, g, b]. */
export function inkOn(rgb) {
  const [r, g, b] = rgb.map((value) => ((value / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

/** Return a reader's label, colour and dashes from `head.readers`, the same in every picture of the project. */
export const readerStyle = (head, name) => head.readers[name] ?? { label: name, colour: palette().muted, dash: "solid" };
