/** Files: text, bytes, streams; directories; watching. */

import { env, getSandbox } from 'sandpail';
import { check, freshName } from './support.js';

await using sandbox = getSandbox(env.Sandbox, freshName('files'));

await sandbox.writeFile('notes/grüße #1.txt', 'Grüße\n');
check(
  (await sandbox.exec('cat "notes/grüße #1.txt"')).stdout === 'Grüße\n',
  'text; relative paths are below /workspace',
);

const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
await sandbox.writeFile('/tmp/bytes.bin', bytes);
const read = await sandbox.readFile('/tmp/bytes.bin');
check(read.isBinary === true && read.encoding === 'base64' && read.size === 256, 'bytes are told from text');
check(Buffer.from(read.content, 'base64').equals(bytes), 'and arrive unchanged');
await sandbox.writeFile('/tmp/copy.bin', read.content, { encoding: 'base64' });
check((await sandbox.exec('cmp /tmp/bytes.bin /tmp/copy.bin')).success, 'base64 can be written as well');

const mib = new Uint8Array(1 << 20).fill(7);
let count = 6;
const source = new ReadableStream<Uint8Array>({
  pull(controller) {
    if (count-- > 0) controller.enqueue(mib);
    else controller.close();
  },
});
await sandbox.writeFile('/tmp/large.bin', source);
let size = 0;
for await (const chunk of await sandbox.readFileStream('/tmp/large.bin')) size += chunk.length;
check(size === 6 << 20, 'large files are streamed both ways');

await sandbox.mkdir('tree/deep/er', { recursive: true });
await sandbox.writeFile('tree/deep/a.txt', 'a');
await sandbox.writeFile('tree/.hidden', 'h');
const names = async (options: Parameters<typeof sandbox.listFiles>[1]) =>
  (await sandbox.listFiles('tree', options)).files
    .map((file) => file.relativePath)
    .sort()
    .join(' ');
check((await names({})) === 'deep', 'a directory is listed');
check(
  (await names({ recursive: true, includeHidden: true })) === '.hidden deep deep/a.txt deep/er',
  'with all below it',
);
check((await sandbox.stat('tree/deep/a.txt')).size === 1, 'a file is described');

await sandbox.renameFile('tree/deep/a.txt', 'tree/b.txt');
await sandbox.moveFile('tree/b.txt', '/tmp/b.txt');
check(
  (await sandbox.exists('/tmp/b.txt')).exists && !(await sandbox.exists('tree/b.txt')).exists,
  'renamed, and moved',
);
await sandbox.deleteFile('/tmp/b.txt');
await sandbox.deleteFile('tree', { recursive: true });
check(!(await sandbox.exists('tree')).exists, 'removed');

for await (const event of sandbox.watch('/workspace')) {
  if (event.type === 'watching') await sandbox.writeFile('seen.txt', 'x');
  if (event.type === 'event' && event.path === '/workspace/seen.txt') break;
}
check(true, 'a change was seen');
