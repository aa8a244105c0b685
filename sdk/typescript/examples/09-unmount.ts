/** Unmounting: everything is stored first, the directory goes, the objects stay. */

import { InvalidMountConfigError, env, getSandbox } from 'sandpail';
import { check, freshName, refused, removeAll } from './support.js';

const name = freshName('unmount');
const bucket = env.MY_BUCKET;
await using sandbox = getSandbox(env.Sandbox, name);

await sandbox.writeFile('/covered/own.txt', 'of the sandbox');
await sandbox.mountBucket('MY_BUCKET', '/covered', { prefix: `/${name}/` });
check(!(await sandbox.exists('/covered/own.txt')).exists, 'a mount covers what was at its path');
await sandbox.writeFile('/covered/kept.txt', 'of the bucket');

await sandbox.unmountBucket('/covered');
check((await sandbox.readFile('/covered/own.txt')).content === 'of the sandbox', 'what was covered is back');
check((await (await bucket.get(`${name}/kept.txt`))?.text()) === 'of the bucket', 'the object stays');

await sandbox.mountBucket('MY_BUCKET', '/made', { prefix: `/${name}/` });
await sandbox.unmountBucket('/made');
check(!(await sandbox.exists('/made')).exists, 'a directory that the mount made goes with it');
await sandbox.mountBucket('MY_BUCKET', '/made', { prefix: `/${name}/` });
check((await sandbox.readFile('/made/kept.txt')).content === 'of the bucket', 'it can be mounted again at once');

await refused(
  sandbox.unmountBucket('/elsewhere'),
  InvalidMountConfigError,
  'No active mount found at path: /elsewhere',
);
await removeAll(bucket, `${name}/`);
