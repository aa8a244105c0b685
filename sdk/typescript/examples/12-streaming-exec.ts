/** Output as it comes: as callbacks and as an iterator; exact arguments; timeouts; giving up. */

import { env, getSandbox } from 'sandpail';
import { check, freshName } from './support.js';

await using sandbox = getSandbox(env.Sandbox, freshName('streaming'));

let firstAfter = 0;
const started = Date.now();
const slow = await sandbox.exec('for i in 1 2 3; do echo "line $i"; sleep 0.3; done; echo done >&2', {
  stream: true,
  onOutput: (stream, data) => {
    firstAfter ||= Date.now() - started;
    console.log(`[${stream}] ${data.trimEnd()}`);
  },
  onComplete: (result) => console.log(`exit ${result.exitCode} after ${result.duration} ms`),
});
check(slow.stdout === 'line 1\nline 2\nline 3\n' && slow.stderr === 'done\n', 'the result has all of it too');
check(firstAfter < slow.duration - 500, 'the first line came long before the end');

const seen: string[] = [];
for await (const event of sandbox.execStream('echo grüße; echo oh >&2; exit 4')) {
  if (event.type === 'stdout') seen.push(event.data.trimEnd());
  if (event.type === 'complete') seen.push(`exit ${event.exitCode}`);
}
check(seen.join(' ') === 'grüße exit 4', 'an iterator gives the same');

const exact = await sandbox.exec('printf', { args: ['%s|', '$HOME', 'a b', '*', '', '"'] });
check(exact.stdout === '$HOME|a b|*||"|', 'arguments arrive as they are');
check(
  (await sandbox.exec('echo $WHO in $(pwd)', { env: { WHO: 'me' }, cwd: '/tmp' })).stdout === 'me in /tmp\n',
  'env and cwd',
);

const late = await sandbox.exec('sleep 30', { timeout: 200 });
check(late.exitCode === 124 && late.stderr.includes('Command timed out after 200ms'), 'a timeout kills the command');

const aborted = await sandbox
  .exec('sleep 2', { signal: AbortSignal.timeout(200) })
  .catch((error: unknown) => (error as Error).name);
check(aborted === 'TimeoutError', 'a signal gives up waiting');
