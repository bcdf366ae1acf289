/** Workers that are terminated while their guest spins inside KVM_RUN, several at a time. */
import { setTimeout as sleep } from 'node:timers/promises';
import { GuestRam } from 'vmexit/kvm';
import { COUNT_UP, COUNTER } from '../../support/guests.js';
import { runWorker } from '../../support/workers.js';
import { compare, report } from './census.js';

const [count, atOnce] = [Number(process.argv[2]), Number(process.argv[3])];
const method = process.argv[4];
const CODE = `
  const kvm = Kvm.open();
  const vm = kvm.createVm();
  const ram = vm.addMemory({ gpa: 0, size: 0x10000 });
  ram.bytes.set([${COUNT_UP.join()}], 0x1000);
  const vcpu = vm.createVcpu(0);
  const sregs = vcpu.getSregs();
  for (const name of ['cs', 'ds']) Object.assign(sregs[name], { base: 0n, selector: 0 });
  vcpu.setSregs(sregs);
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n });
  parentPort.postMessage(ram.token);
  if (data === 'run') vcpu.run();
  else for (;;) { vcpu.runInline(); await new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.on('message', () => { port1.close(); resolve(); });
    port2.postMessage(0); }); }
  parentPort.postMessage('ended');`;

let terminated = 0;
async function one(): Promise<void> {
  const { worker, next, done } = runWorker(CODE, method);
  const ram = GuestRam.attach((await next()) as number, 0);
  while (ram.bytes[COUNTER] === 0) await sleep(1); // until it is inside
  ram.close();
  await worker.terminate();
  terminated++;
  await done;
}
async function terminate(n: number): Promise<void> {
  for (let i = 0; i < n; i += atOnce) await Promise.all(Array.from({ length: atOnce }, one));
}
await terminate(10);
terminated = 0;
const comparison = await compare(() => terminate(count));
report({ ...comparison, terminated });
