/**
 * Boots guests one after another, in the nested host. Reads a JSON array of `GuestPlan` (test/support/linux-guests.ts)
 * on stdin, writes an array of `GuestReport` to stdout.
 */
import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';
import process from 'node:process';
import { clearTimeout, setTimeout } from 'node:timers';
import { Buffer } from 'node:buffer';
import { MicroVM } from 'vmexit';

const plans = JSON.parse(await text(process.stdin));
const reports = [];
for (const plan of plans) {
  process.stderr.write(`booting: ${plan.name}\n`);
  reports.push(await run(plan).catch((error) => ({ name: plan.name, output: '', error: String(error.stack) })));
}
process.stdout.write(JSON.stringify(reports));

async function run({ name, options, steps = [], serve, timeoutMs = 120_000 }) {
  const server = serve && createServer((_request, response) => response.end(serve.body));
  if (server) await new Promise((resolve) => server.listen(serve.port, '127.0.0.1', resolve));
  let vm;
  try {
    vm = await MicroVM.create({ accel: 'kvm', ...options });
    const report = { name, output: '', stats: {}, fetched: {} };
    const acts = {
      stats: async (step) => (report.stats[step.as] = await vm.stats()),
      powerButton: () => vm.powerButton(),
      fetch: async (step) => (report.fetched[step.as] = await (await globalThis.fetch(step.url)).text()),
      type: (step) => vm.console.write(step.text),
    };
    const waiting = [...steps];
    const acting = [];
    vm.console.on('data', (chunk) => {
      report.output += Buffer.from(chunk).toString('latin1');
      while (waiting.length > 0 && report.output.includes(waiting[0].when)) {
        const step = waiting.shift();
        acting.push(Promise.resolve(acts[step.act](step)).catch((error) => (report.error ??= String(error.stack))));
      }
    });
    const timer = setTimeout(() => {
      report.error ??= `the guest ran for ${timeoutMs} ms`;
      void vm.stop();
    }, timeoutMs);
    await vm.start();
    report.exit = await vm.exited;
    clearTimeout(timer);
    await Promise.all(acting);
    report.stats.end = await vm.stats();
    return report;
  } finally {
    await vm?.close();
    server?.closeAllConnections();
    server?.close();
  }
}
