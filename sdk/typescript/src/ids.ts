/**
 * Names of sandboxes. The server takes `^[a-z2-7]{1,128}$`; people write `my-sandbox` or `User_42`.
 *
 * - A name that the server takes is used as it is, so ids made by the server, and those of other clients, stay what
 *   they are.
 * - Any other name becomes `sdk7` + the base32 of its UTF-8 (lower case, no padding).
 * - Names that look like the second kind are encoded too, so that two names never mean one sandbox. The exception are
 *   names of 26 characters, the length of the ids that the server makes; no encoded name has that length.
 */

import { fromBase32, toBase32 } from './encoding.js';
import { invalidArgument } from './error-mapping.js';

const SERVER_ID = /^[a-z2-7]{1,128}$/;
const SERVER_MADE_LEN = 26;
/**
 * Four characters: 4 + the length of a base32 text is never {@link SERVER_MADE_LEN}, as a base32 text never has 22 (6
 * mod 8).
 */
const MARK = 'sdk7';
/** 124 characters of base32. */
const NAME_BYTES_MAX = 77;

/**
 * The id under which the server knows the sandbox called `name`. The same name always gives the same id.
 *
 * @throws {@link SandboxError} `INVALID_REQUEST` if the name is empty or, when it must be encoded, longer than 77
 * bytes.
 */
export function sandboxIdOf(name: string): string {
  if (SERVER_ID.test(name) && (!name.startsWith(MARK) || name.length === SERVER_MADE_LEN)) return name;
  const bytes = new TextEncoder().encode(name);
  if (bytes.length === 0 || bytes.length > NAME_BYTES_MAX) {
    throw invalidArgument(`A sandbox id must have 1 to ${NAME_BYTES_MAX} bytes: ${JSON.stringify(name)}`, 'getSandbox');
  }
  return MARK + toBase32(bytes);
}

/** The name that {@link sandboxIdOf} made `id` from; `id` itself if it was not made so. */
export function sandboxNameOf(id: string): string {
  if (!id.startsWith(MARK) || id.length === SERVER_MADE_LEN) return id;
  const bytes = fromBase32(id.slice(MARK.length));
  if (!bytes) return id;
  const name = new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
  // Foreign ids that only begin alike do not lead back to themselves.
  return bytes.length > 0 && bytes.length <= NAME_BYTES_MAX && sandboxIdOf(name) === id ? name : id;
}
