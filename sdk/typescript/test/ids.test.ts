import { expect, test } from 'vitest';
import { sandboxIdOf, sandboxNameOf } from 'sandpail';
import { fromBase32, toBase32 } from '../src/encoding.js';

const NAMES = [
  'my-sandbox',
  'User_42',
  'A',
  'a',
  'abc234567',
  '0',
  'ü €',
  'a b/c',
  'x'.repeat(77) + '',
  '-'.repeat(77),
  'sdk7',
  'sdk7abc',
];

test('every name maps to an id that the server takes, and back', () => {
  for (const name of NAMES) {
    const id = sandboxIdOf(name);
    expect(id, name).toMatch(/^[a-z2-7]{1,128}$/);
    expect(sandboxNameOf(id), id).toBe(name);
  }
});

test('names that the server takes are used as they are', () => {
  for (const name of ['a', 'abc234567', 'z'.repeat(128), 'sdk7'.padEnd(26, 'q')]) expect(sandboxIdOf(name)).toBe(name);
});

test('two names never mean one sandbox', () => {
  const encoded = sandboxIdOf('my-sandbox');
  expect(sandboxIdOf(encoded)).not.toBe(encoded);
  expect(sandboxNameOf(sandboxIdOf(encoded))).toBe(encoded);
  const names = new Set(NAMES.concat(NAMES.map(sandboxIdOf)).filter((name) => name.length <= 77));
  expect(new Set(Array.from(names, sandboxIdOf)).size).toBe(names.size);
});

test('no encoded id has the length of the ids that the server makes', () => {
  for (let len = 1; len <= 77; len++) expect(sandboxIdOf('-'.repeat(len))).not.toHaveLength(26);
});

test('names that fit nowhere are refused', () => {
  expect(() => sandboxIdOf('')).toThrow('1 to 77 bytes');
  expect(() => sandboxIdOf('-'.repeat(78))).toThrow('1 to 77 bytes');
});

test('base32 is that of RFC 4648, in lower case', () => {
  const encode = (text: string) => toBase32(new TextEncoder().encode(text));
  expect(['', 'f', 'fo', 'foo', 'foob', 'fooba', 'foobar'].map(encode)).toEqual([
    '',
    'my',
    'mzxq',
    'mzxw6',
    'mzxw6yq',
    'mzxw6ytb',
    'mzxw6ytboi',
  ]);
  expect(new TextDecoder().decode(fromBase32('mzxw6ytboi'))).toBe('foobar');
  expect(fromBase32('A1')).toBeUndefined();
});
