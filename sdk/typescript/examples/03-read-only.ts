/** A mount that refuses writes. */

import { FileSystemError, env, getSandbox } from 'sandpail';
import { check, freshName, refused, removeAll } from './support.js';

const name = freshName('read-only');
const bucket = env.MY_BUCKET;
await bucket.put(`${name}/data.csv`, 'a,b\n1,2\n');

await using sandbox = getSandbox(env.Sandbox, name);
await sandbox.mountBucket('MY_BUCKET', '/data', { prefix: `/${name}/`, readOnly: true });

check((await sandbox.readFile('/data/data.csv')).content === 'a,b\n1,2\n', 'reading works');
const error = await refused(sandbox.writeFile('/data/data.csv', 'gone'), FileSystemError, 'Read-only filesystem');
check(error.code === 'READ_ONLY', 'its code is READ_ONLY');

const touched = await sandbox.exec('touch /data/new');
check(!touched.success && touched.stderr.includes('Read-only file system'), 'commands are refused by the kernel');
const removed = await sandbox.exec('rm /data/data.csv');
check(!removed.success && (await bucket.head(`${name}/data.csv`)) !== null, 'and cannot remove anything');
await removeAll(bucket, `${name}/`);
