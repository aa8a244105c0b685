/**
 * Runs every example, compiled, against a real daemon.
 *
 * - `SANDPAIL_URL` (and `SANDPAIL_API_KEY`): the daemon, with the binding `MY_BUCKET`. Without it nothing is run.
 * - `EXAMPLE_S3_ENDPOINT`, `EXAMPLE_S3_BUCKET`, `EXAMPLE_S3_ACCESS_KEY_ID`, `EXAMPLE_S3_SECRET_ACCESS_KEY`: a store
 *   that the daemon reaches, for the examples that mount by endpoint.
 * - `EXAMPLE_S3_DETECTED=1`: the daemon itself was started with keys for that store.
 */

import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';

const run = promisify(execFile);
const root = fileURLToPath(new URL('..', import.meta.url));
const examples = readdirSync(`${root}examples`)
  .filter((name) => /^\d\d-.*\.ts$/.test(name))
  .map((name) => name.slice(0, -3))
  .sort();
const hasDaemon = Boolean(process.env['SANDPAIL_URL']);
if (!hasDaemon) console.warn('examples: not run, as SANDPAIL_URL names no daemon');

function isMissing(example: string): boolean {
  if (/^0[456]-/.test(example) && !process.env['EXAMPLE_S3_ENDPOINT']) return true;
  return example.startsWith('05-') && process.env['EXAMPLE_S3_DETECTED'] !== '1';
}

test('there is an example for every scenario', () => {
  expect(examples.map((name) => name.slice(0, 2))).toEqual(
    Array.from({ length: 20 }, (_, i) => String(i + 1).padStart(2, '0')),
  );
});

describe.runIf(hasDaemon)('examples', () => {
  beforeAll(() => run('npm', ['run', '--silent', 'examples'], { cwd: root }), 120_000);

  for (const example of examples) {
    test.skipIf(isMissing(example))(
      example,
      async () => {
        // The terminal needs a WebSocket, which Node 20 has behind this flag.
        const flags = process.versions.node.startsWith('20.') ? ['--experimental-websocket', '--no-warnings'] : [];
        const ended = await run(process.execPath, [...flags, `build/examples/${example}.js`], {
          cwd: root,
          timeout: 60_000,
        }).then(
          ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
          (error: { code: number; stdout: string; stderr: string }) => error,
        );
        expect(ended.code, `${ended.stdout}\n${ended.stderr}`).toBe(0);
        expect(ended.stdout).toContain('ok: ');
      },
      90_000,
    );
  }
});
