/** A bucket of any S3-compatible store, with keys of this call. The keys stay outside of the sandbox. */

import { env, getSandbox } from 'sandpail';
import { check, freshName, s3Store } from './support.js';

const { endpoint, bucket, credentials } = s3Store();
const name = freshName('endpoint');

await using sandbox = getSandbox(env.Sandbox, name);
await sandbox.mountBucket(bucket, '/data', { endpoint, credentials });

await sandbox.writeFile(`/data/${name}.txt`, 'over there');
check((await sandbox.exec(`cat /data/${name}.txt`)).stdout === 'over there', 'the store is a directory');
check((await sandbox.exec(`rm /data/${name}.txt`)).success, 'files can be removed');

// What root of the sandbox can see of all processes and mounts.
const shown = await sandbox.exec('cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/mounts 2>/dev/null');
check(shown.stdout.includes(' /data '), 'the mount is seen');
check(!shown.stdout.includes(credentials.secretAccessKey), 'the key is not');
