/** A machine with a process of each kind behind it. Says when it runs, and waits to be killed. */
import process from 'node:process';
import { MicroVM } from 'vmexit';

const vm = await MicroVM.create(JSON.parse(process.argv[2]));
await vm.start();
process.stdout.write('running\n');
