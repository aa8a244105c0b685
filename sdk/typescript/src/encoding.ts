/** Bytes as text, with web APIs only. */

/** Bytes that `fetch` and `Blob` take whatever `lib` the caller compiles with. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** So many arguments every engine takes in one call. */
const CHUNK_LEN = 0x8000;

/** Standard base64 with padding. */
export function toBase64(bytes: Uint8Array): string {
  let binary = '';
  for (let start = 0; start < bytes.length; start += CHUNK_LEN) {
    binary += String.fromCharCode(...bytes.subarray(start, start + CHUNK_LEN));
  }
  return btoa(binary);
}

/**
 * Decodes base64, also without padding and with white space.
 *
 * @throws an exception of `atob` if it is none.
 */
export function fromBase64(text: string): Bytes {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567';

/** Base32 in lower case, without padding. */
export function toBase32(bytes: Uint8Array): string {
  let text = '';
  let bits = 0;
  let bitCount = 0;
  for (const byte of bytes) {
    bits = (bits << 8) | byte;
    bitCount += 8;
    while (bitCount >= 5) {
      bitCount -= 5;
      text += BASE32.charAt((bits >> bitCount) & 31);
    }
    bits &= (1 << bitCount) - 1;
  }
  return bitCount > 0 ? text + BASE32.charAt((bits << (5 - bitCount)) & 31) : text;
}

/** Undoes {@link toBase32}; `undefined` if `text` is no base32. */
export function fromBase32(text: string): Bytes | undefined {
  const bytes: number[] = [];
  let bits = 0;
  let bitCount = 0;
  for (const character of text) {
    const value = BASE32.indexOf(character);
    if (value < 0) return undefined;
    bits = (bits << 5) | value;
    bitCount += 5;
    if (bitCount >= 8) {
      bitCount -= 8;
      bytes.push((bits >> bitCount) & 255);
      bits &= (1 << bitCount) - 1;
    }
  }
  return Uint8Array.from(bytes);
}

/** The text of `bytes` if they are UTF-8 without NUL, which is what this package calls a text file. */
export function textOf(bytes: Uint8Array): string | undefined {
  if (bytes.includes(0)) return undefined;
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

/** A decoder of a stream of UTF-8: keeps the bytes of a split character for the next chunk, and byte order marks. */
export function utf8Stream(): TextDecoder {
  return new TextDecoder('utf-8', { ignoreBOM: true });
}

const MIME_TYPES: Record<string, string> = {
  avif: 'image/avif',
  css: 'text/css',
  csv: 'text/csv',
  gif: 'image/gif',
  gz: 'application/gzip',
  html: 'text/html',
  jpeg: 'image/jpeg',
  jpg: 'image/jpeg',
  js: 'text/javascript',
  json: 'application/json',
  md: 'text/markdown',
  mjs: 'text/javascript',
  mp3: 'audio/mpeg',
  mp4: 'video/mp4',
  parquet: 'application/vnd.apache.parquet',
  pdf: 'application/pdf',
  png: 'image/png',
  py: 'text/x-python',
  svg: 'image/svg+xml',
  tar: 'application/x-tar',
  ts: 'text/typescript',
  txt: 'text/plain',
  wasm: 'application/wasm',
  wav: 'audio/wav',
  webp: 'image/webp',
  xml: 'application/xml',
  yaml: 'application/yaml',
  yml: 'application/yaml',
  zip: 'application/zip',
};

/** The media type by the name's extension, else by whether it is text. */
export function mimeTypeOf(path: string, isBinary: boolean): string {
  const extension = /\.([^./]+)$/.exec(path)?.[1]?.toLowerCase() ?? '';
  return MIME_TYPES[extension] ?? (isBinary ? 'application/octet-stream' : 'text/plain');
}
