/** The workspace as a tar archive: taken from one sandbox, unpacked in another. */

import { env, getSandbox } from 'sandpail';
import { check, freshName } from './support.js';

const name = freshName('archive');
await using from = getSandbox(env.Sandbox, name);
await using to = getSandbox(env.Sandbox, `${name}-to`);
await from.exec(
  'mkdir -p src cache; echo code > src/main; chmod 755 src/main; ln -s main src/link; echo big > cache/x',
);
await from.mountBucket('MY_BUCKET', '/workspace/data');

await to.writeFile('kept.txt', 'was there');
await to.hydrate(await from.persist({ excludes: ['cache'] }));
check((await to.exec('test -x src/main && cat src/link')).stdout === 'code\n', 'files, modes and links arrive');
check(!(await to.exists('cache/x')).exists, 'what was excluded does not');
check((await to.exec('ls data 2>/dev/null | wc -l')).stdout.trim() === '0', 'nor what was mounted');
check((await to.exists('kept.txt')).exists, 'what the archive does not name is kept');
