/** Workers that are terminated while their guest spins inside KVM_RUN, several at a time. */
import { runWorker } from '../../support/workers.js';
import { census, report, settle } from './census.js';

const [count, atOnce] = [Number(process.argv[2]), Number(process.argv[3])];
const method = process.argv[4];
const CODE = `
  const kvm = Kvm.open();
  const vm = kvm.createVm();
  const ram = vm.addMemory({ gpa: 0, size: 0x10000 });
  ram.bytes.set([0xeb, 0xfe], 0x1000); // jmp .
  const vcpu = vm.createVcpu(0);
  const sregs = vcpu.getSregs();
  sregs.cs.base = 0n;
  sregs.cs.selector = 0;
  vcpu.setSregs(sregs);
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n });
  vcpu.run(1);
  parentPort.postMessage('spinning');
  if (data === 'run') vcpu.run();
  else for (;;) { vcpu.runInline(); await new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.on('message', () => { port1.close(); resolve(); });
    port2.postMessage(0); }); }
  parentPort.postMessage('ended');`;

const takesMs: number[] = [];
async function one(): Promise<void> {
  const { worker, next, done } = runWorker(CODE, method);
  await next();
  await new Promise((resolve) => setTimeout(resolve, 2));
  const start = performance.now();
  await worker.terminate();
  takesMs.push(performance.now() - start);
  await done;
}
async function terminate(n: number): Promise<void> {
  for (let i = 0; i < n; i += atOnce) await Promise.all(Array.from({ length: atOnce }, one));
}
await terminate(10);
await settle();
takesMs.length = 0;
const before = census();
await terminate(count);
await settle();
report({ before, after: census(), slowestMs: Math.max(...takesMs), terminated: takesMs.length });
