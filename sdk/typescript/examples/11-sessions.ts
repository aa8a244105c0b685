/** Sessions: shells whose directory and variables last from command to command. */

import { env, getSandbox } from 'sandpail';
import { check, freshName, removeAll } from './support.js';

const name = freshName('sessions');
await using sandbox = getSandbox(env.Sandbox, name);
await sandbox.mkdir('/workspace/app/src', { recursive: true });

const build = await sandbox.createSession({ id: 'build', cwd: '/workspace/app', env: { MODE: 'release' } });
const test = await sandbox.createSession({ id: 'test', env: { MODE: 'debug' } });

await build.exec('cd src && export COUNT=1 && half() { echo "$(( $1 / 2 ))"; }');
check((await build.exec('pwd')).stdout === '/workspace/app/src\n', 'a session keeps its directory');
check((await build.exec('echo $MODE $COUNT $(half 84)')).stdout === 'release 1 42\n', 'its variables and functions');
check((await test.exec('echo $MODE $COUNT; pwd')).stdout === 'debug\n/workspace\n', 'and another one has its own');
await build.exec('false');
check((await build.exec('echo $COUNT')).stdout === '1\n', 'a failing command leaves it usable');

// Files and mounts are those of the sandbox.
await build.mountBucket('MY_BUCKET', '/data', { prefix: `/${name}/` });
await build.writeFile('/data/a.txt', 'shared');
check((await test.exec('cat /data/a.txt')).stdout === 'shared', 'a mount is there for all sessions');

check((await (await sandbox.getSession('build')).exec('echo $COUNT')).stdout === '1\n', 'a session is found by its id');
check((await sandbox.deleteSession('build')).success, 'a session can be ended');
await removeAll(env.MY_BUCKET, `${name}/`);
