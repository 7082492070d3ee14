// Arrays and texts from the bytes of `widgets/core/packing.py`.

const ARRAYS = {
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  float32: Float32Array, float64: Float64Array,
};
const MISSING = 65535; // code of a value that is not finite

/**
 * Return typed arrays by name, as `pack` laid them end to end; `layout` gives type, first byte and shape of each.
 * They are views of `data`, copied only where its first byte is not at a multiple of 8.
 */
export function unpack(layout, data) {
  const bytes = data instanceof DataView ? data : new DataView(data);
  const aligned = bytes.byteOffset % 8 === 0 ? bytes.buffer : bytes.buffer.slice(bytes.byteOffset);
  const start = bytes.byteOffset % 8 === 0 ? bytes.byteOffset : 0;
  return Object.fromEntries(Object.entries(layout).map(([name, [type, offset, shape]]) => {
    const length = shape.reduce((product, side) => product * side, 1);
    return [name, new ARRAYS[type](aligned, start + offset, length)];
  }));
}

/** Return the values of `quantise`: low + step · code, NaN where the code is `MISSING`. */
export function dequantise(codes, low, step) {
  return Float32Array.from(codes, (code) => (code === MISSING ? NaN : low + step * code));
}

/** Return the texts of `pack_texts`: `lengths[i]` bytes of UTF-8 each. */
export function unpackTexts(bytes, lengths) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // a byte order mark is a token like any other
  let at = 0;
  return Array.from(lengths, (length) => decoder.decode(bytes.subarray(at, (at += length))));
}
