/**
 * `credentialProxy`: besides the directory, S3 clients inside may reach the bucket through the daemon, which holds the
 * keys.
 */

import { env, getSandbox } from 'sandpail';
import { check, freshName, s3Store } from './support.js';

const { endpoint, bucket, credentials } = s3Store();
const name = freshName('proxy');

await using sandbox = getSandbox(env.Sandbox, name);
await sandbox.mountBucket(bucket, '/data', { endpoint, credentials, credentialProxy: true, prefix: `/${name}/` });

const [mount] = await sandbox.listMounts();
check(mount?.mode === 'endpoint-proxy', 'the mount is listed as one with a proxy');
check(!JSON.stringify(mount).includes(credentials.secretAccessKey), 'and never with its keys');
await sandbox.writeFile('/data/a.txt', 'through the mount');
check((await sandbox.readFile('/data/a.txt')).content === 'through the mount', 'the directory works as any other');
await sandbox.deleteFile('/data/a.txt');
