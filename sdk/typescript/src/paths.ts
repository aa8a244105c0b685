/** Paths of the sandbox, as text. */

import { invalidArgument } from './error-mapping.js';

/** Where sandboxes start, and what relative paths mean. */
export const WORKSPACE = '/workspace';

/** The absolute path of `path`: relative means below {@link WORKSPACE}; `.`, `..` and `//` are resolved as text. */
export function absolutePath(path: string, operation: string): string {
  if (path === '') throw invalidArgument('file path must not be empty', operation);
  const parts: string[] = [];
  for (const part of `${path.startsWith('/') ? '' : WORKSPACE}/${path}`.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  return `/${parts.join('/')}`;
}

/** An absolute path as a part of a URL's path, without its first `/`. */
export function pathInUrl(path: string, operation: string): string {
  return path
    .slice(1)
    .split('/')
    .map((part) => segment(part, operation))
    .join('/');
}

/** `text` as one segment of a URL's path. */
export function segment(text: string, operation: string): string {
  // URL parsers resolve these two away, whether or not the dots are percent-encoded.
  if (text === '' || text === '.' || text === '..') {
    throw invalidArgument(`${JSON.stringify(text)} cannot be named in a URL`, operation);
  }
  try {
    return encodeURIComponent(text);
  } catch (cause) {
    throw Object.assign(invalidArgument(`${JSON.stringify(text)} is no well-formed text`, operation), { cause });
  }
}
