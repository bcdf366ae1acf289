/** What an MSR costs that user space handles: a VMM that models one, or watches who writes it. */
import { KVM_CAP } from '../../kvm/index.js';
import { runAlone } from '../alone.js';
import { baseline } from '../baseline.js';
import { Unavailable, type Benchmark } from '../benchmark.js';
import { FINISH, openKvm } from '../guest.js';
import { byHand, cContender } from './contenders.js';

/** Of no processor, and not of KVM. */
const UNKNOWN_MSR = [0x34, 0x12, 0x56, 0x4b];

/** Writes the MSR ECX times. */
const CODE = [
  [0x66, 0x89, 0xcf], //            mov    edi, ecx
  [0x66, 0xb9, ...UNKNOWN_MSR], //  mov    ecx, UNKNOWN_MSR
  [0x66, 0x31, 0xd2], //            xor    edx, edx
  [0x66, 0x89, 0xf8], //        1:  mov    eax, edi
  [0x0f, 0x30], //                  wrmsr
  [0x66, 0x4f], //                  dec    edi
  [0x75, 0xf7], //                  jnz    1b
  FINISH,
].flat();

export const msr: Benchmark = {
  name: 'exits/msr',
  title: 'MSR write to user space',
  description: 'A guest writes an MSR that KVM does not have and hands to user space (KVM_CAP_X86_USER_SPACE_MSR).',
  metrics: { time: { title: 'time per write', unit: 'ns' } },
  async contenders(context) {
    using kvm = openKvm();
    if (kvm.checkExtension(KVM_CAP.X86_USER_SPACE_MSR) === 0) {
      throw new Unavailable('this KVM hands no MSRs to user space (KVM_CAP_X86_USER_SPACE_MSR)');
    }
    const floor = await baseline('exits', context);
    return [
      ...(floor === undefined ? [] : [cContender(floor, CODE, 'msr')]),
      { name: 'by hand', open: () => byHand({ code: CODE, prepare: (vm) => vm.setMsrExits({ unknown: true }) }) },
    ];
  },
};

await runAlone(import.meta.filename, msr);
