/** Background processes: start, follow, list, signal. */

import { env, getSandbox } from 'sandpail';
import { check, freshName } from './support.js';

await using sandbox = getSandbox(env.Sandbox, freshName('processes'));

const server = await sandbox.startProcess('echo up; trap "echo bye; exit 0" TERM; while :; do sleep 0.1; done', {
  processId: 'server',
});
for await (const event of server.streamLogs()) {
  if (event.type === 'stdout' && event.data.includes('up')) break;
}
check((await server.getStatus()) === 'running', 'it runs on');
check(
  (await sandbox.listProcesses()).some((process) => process.id === 'server'),
  'and is listed',
);

await server.kill();
check((await server.wait()) === 0, 'SIGTERM was handled');
check((await server.getLogs()).stdout === 'up\nbye\n', 'its output is kept');
check((await sandbox.getProcess('server'))?.status === 'completed', 'so is its end');

const stubborn = await sandbox.startProcess('sleep', { args: ['60'] });
await sandbox.startProcess('sleep 60');
check((await sandbox.killAllProcesses('SIGKILL')) === 2, 'all that run can be killed');
check((await stubborn.wait()) === 137, '137 is 128 + SIGKILL');
check((await sandbox.getProcess('no-such-process')) === null, 'a process that is not there is null');
