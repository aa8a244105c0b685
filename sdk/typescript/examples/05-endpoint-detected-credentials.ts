/** A bucket of an S3-compatible store, with the keys that the daemon's environment or configuration holds. */

import { env, getSandbox } from 'sandpail';
import { check, freshName, s3Store } from './support.js';

// The daemon was started with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the R2_ pair.
const { endpoint, bucket } = s3Store();
const name = freshName('detected');

await using sandbox = getSandbox(env.Sandbox, name);
await sandbox.mountBucket(bucket, '/data', { endpoint, prefix: `/${name}/` });

await sandbox.writeFile('/data/hello.txt', 'detected');
check((await sandbox.exec('cat /data/hello.txt')).stdout === 'detected', 'the daemon found the keys itself');
check((await sandbox.exec('env | grep -cE "^(AWS|R2)_"')).stdout === '0\n', 'the sandbox has none of its variables');
await sandbox.deleteFile('/data/hello.txt');
