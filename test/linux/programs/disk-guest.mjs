/**
 * One guest, for programs/kill.mjs to end: boots the machine of the JSON in its argument, and passes its console on to
 * stdout. A line on stdin stops the machine.
 */
import process from 'node:process';
import { MicroVM } from 'vmexit';

const vm = await MicroVM.create({ accel: 'kvm', ...JSON.parse(process.argv[2]) });
vm.console.pipe(process.stdout);
process.stdin.once('data', () => void vm.stop());
await vm.start();
await vm.exited;
await vm.close();
process.stdin.destroy();
