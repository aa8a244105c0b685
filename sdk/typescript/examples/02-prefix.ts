/** A part of a bucket: only the keys below a prefix, without it. */

import { InvalidMountConfigError, env, getSandbox } from 'sandpail';
import { check, freshName, refused, removeAll } from './support.js';

const name = freshName('prefix');
const bucket = env.MY_BUCKET;
await bucket.put(`${name}/users/anna/notes.txt`, 'of anna');
await bucket.put(`${name}/users/anna-b/notes.txt`, 'of someone else');

await using sandbox = getSandbox(env.Sandbox, name);
await sandbox.mountBucket('MY_BUCKET', '/data', { prefix: `/${name}/users/anna` });

const { stdout } = await sandbox.exec('find /data -type f');
check(stdout === '/data/notes.txt\n', 'only the keys of the prefix show, without it');
await sandbox.writeFile('/data/new.txt', 'hello');
check(
  (await (await bucket.get(`${name}/users/anna/new.txt`))?.text()) === 'hello',
  'new files are stored below the prefix',
);

await refused(
  sandbox.mountBucket('MY_BUCKET', '/more', { prefix: 'users/' }),
  InvalidMountConfigError,
  'Prefix must start with \'/\': "users/"',
);
await removeAll(bucket, `${name}/`);
