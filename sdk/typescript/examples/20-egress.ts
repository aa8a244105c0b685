/** What a sandbox reaches of the network: nothing, unless its policy says so. The policy changes while it runs. */

import { SandboxError, env, getSandbox } from 'sandpail';
import { check, freshName, refused } from './support.js';

await using sandbox = getSandbox(env.Sandbox, freshName('egress'));

check((await sandbox.getEgress()).enableInternet === false, 'a sandbox has no internet by itself');
const lookup = (host: string) => sandbox.exec(`python3 -c 'import socket; print(socket.gethostbyname("${host}"))'`);
check(!(await lookup('api.example.com')).success, 'and no names');

const policy = await sandbox.setEgress({
  allowedHosts: ['api.example.com', '*.pypi.org'],
  deniedHosts: ['internal.pypi.org'],
  outboundByHost: { 'api.example.com': { headers: { Authorization: 'Bearer token-of-the-operator' } } },
});
check(policy.outboundByHost['api.example.com']?.headers['Authorization'] === '***', 'a header is set, and shown to nobody');
check((await lookup('api.example.com')).success, 'names that are allowed are known inside');
check(!(await lookup('internal.pypi.org')).success, 'those that are denied are not');
check(!(await lookup('example.org')).success, 'nor others');
const inside = await sandbox.exec('env; cat /proc/*/environ');
check(!inside.stdout.includes('token-of-the-operator'), 'the token is nowhere inside');

await refused(sandbox.setEgress({ allowedHosts: ['http://not-a-host'] }), SandboxError, 'allowedHosts');
await sandbox.setEgress({});
check(!(await lookup('api.example.com')).success, 'without a policy there is nothing again');
