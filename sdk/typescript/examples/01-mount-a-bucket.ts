/** A bucket as a directory: one sandbox writes, another one reads. */

import { env, getSandbox } from 'sandpail';
import { check, freshName, removeAll } from './support.js';

const name = freshName('mount');
{
  await using sandbox = getSandbox(env.Sandbox, name);
  await sandbox.mountBucket('MY_BUCKET', '/data');
  const written = await sandbox.exec(`mkdir -p /data/${name} && seq 1 1000 > /data/${name}/numbers.txt`);
  check(written.success, 'a command writes to the mount');

  const object = await env.MY_BUCKET.get(`${name}/numbers.txt`);
  check((await object?.text())?.startsWith('1\n2\n3\n') === true, 'the file is an object of the bucket');
}
{
  await using other = getSandbox(env.Sandbox, `${name}-reader`);
  await other.mountBucket('MY_BUCKET', '/data');
  const { stdout } = await other.exec('awk', {
    args: ['{ sum += $1 } END { print sum }', `/data/${name}/numbers.txt`],
  });
  check(stdout === '500500\n', 'another sandbox reads the file');
  check((await other.readFile(`/data/${name}/numbers.txt`)).content.length === 3893, 'and so does readFile');
}
await removeAll(env.MY_BUCKET, `${name}/`);
