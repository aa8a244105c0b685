/** A real terminal. On Node 20: `node --experimental-websocket`. */

import { env, getSandbox } from 'sandpail';
import { check, eventually, freshName } from './support.js';

await using sandbox = getSandbox(env.Sandbox, freshName('terminal'));
const terminal = await sandbox.terminal({ cols: 100, rows: 30 });
let shown = '';
const decoder = new TextDecoder();
terminal.on('data', (bytes) => (shown += decoder.decode(bytes, { stream: true })));

terminal.write('test -t 0 && stty size && echo "it is $((6 * 7))"\n');
await eventually('it is a terminal of that size', async () => shown.includes('30 100') && shown.includes('it is 42'));
terminal.resize(120, 40);
terminal.write('stty size\n');
await eventually('it can be resized', async () => shown.includes('40 120'));
terminal.write('exit 5\n');
check((await terminal.exited).code === 5, "the shell's exit code arrives");
