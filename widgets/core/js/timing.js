// When the views act: delays, and calls that are put off until no other follows.

export const SLOW = 300; // ms before a wait is shown
export const PATIENCE = 4000; // ms before a kernel counts as busy or gone

/** Return a function that runs `callback` for its last call only, `delay` ms after it; with 0, in the next frame. */
export function settled(callback, delay = 0) {
  let timer = null;
  return (...given) => {
    if (delay) {
      clearTimeout(timer);
      timer = setTimeout(() => callback(...given), delay);
    } else {
      if (timer !== null) cancelAnimationFrame(timer);
      timer = requestAnimationFrame(() => { timer = null; callback(...given); });
    }
  };
}
