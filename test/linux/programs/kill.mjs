/**
 * Ends guests in the middle of their work, in the nested host. Reads a JSON array of `KillPlan` (test/linux-long/disk.test.ts)
 * on stdin, writes an array of `KillReport` to stdout.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import process from 'node:process';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { clearTimeout, setTimeout } from 'node:timers';
import { fileURLToPath, URL } from 'node:url';

const GUEST = fileURLToPath(new URL('disk-guest.mjs', import.meta.url));
const LIMIT_MS = 120_000;

const reports = [];
for (const plan of JSON.parse(await text(process.stdin))) {
  process.stderr.write(`${plan.how}: ${plan.name}\n`);
  reports.push(await run(plan));
}
process.stdout.write(JSON.stringify(reports));

async function run({ name, how, options, afterLines, delayMs }) {
  const child = spawn(process.execPath, [GUEST, JSON.stringify(options)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const closed = once(child, 'close');
  const limit = setTimeout(() => child.kill('SIGKILL'), LIMIT_MS);
  let output = '';
  const acknowledged = () => [...output.matchAll(/^acknowledged (\d+)\r?\n/gm)].map(([, file]) => Number(file));
  await new Promise((resolve) => {
    child.once('close', resolve);
    child.stdout.on('data', (chunk) => {
      output += chunk;
      if (acknowledged().length >= afterLines) resolve();
    });
  });
  await sleep(delayMs);
  // What the guest had on its way to us by then was acknowledged, too: the pipe is read to its end.
  if (how === 'SIGKILL') child.kill('SIGKILL');
  else child.stdin.write('stop\n');
  const [exitCode, signal] = await closed;
  clearTimeout(limit);
  return { name, output, acknowledged: acknowledged(), exitCode, signal };
}
