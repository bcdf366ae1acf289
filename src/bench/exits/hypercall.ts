/** What a hypercall costs that reaches user space. KVM lets one out: the guest says which of its memory it shares. */
import { KVM_CAP, type Vm } from '../../kvm/index.js';
import { runAlone } from '../alone.js';
import { baseline } from '../baseline.js';
import { Unavailable, type Benchmark } from '../benchmark.js';
import { createGuest, enter, FINISH, openKvm } from '../guest.js';
import { byHand, cContender } from './contenders.js';

/** <linux/kvm_para.h>. Its arguments: a guest-physical address, a number of pages, attributes. */
const KVM_HC_MAP_GPA_RANGE = 12;
/** More than a call takes anywhere. */
const PROBE_MS = 500;

/** Calls ECX times, with as many pages as there are calls to go. KVM puts VMMCALL there on AMD's processors. */
const CODE = [
  [0x66, 0x31, 0xdb], //                               xor     ebx, ebx
  [0x66, 0xb8, KVM_HC_MAP_GPA_RANGE, 0, 0, 0], //  1:  mov     eax, KVM_HC_MAP_GPA_RANGE
  [0x0f, 0x01, 0xc1], //                               vmcall
  [0x66, 0x49], //                                     dec     ecx
  [0x75, 0xf3], //                                     jnz     1b
  FINISH,
].flat();

export const hypercall: Benchmark = {
  name: 'exits/hypercall',
  title: 'Hypercall to user space',
  description:
    'A guest makes the hypercall that KVM hands to user space, KVM_HC_MAP_GPA_RANGE (KVM_CAP_EXIT_HYPERCALL).',
  metrics: { time: { title: 'time per call', unit: 'ns' } },
  async contenders(context) {
    if (!reachesUserSpace()) throw new Unavailable('this KVM hands no hypercalls to user space');
    const floor = await baseline('exits', context);
    return [
      ...(floor === undefined ? [] : [cContender(floor, CODE, 'hypercall')]),
      { name: 'by hand', open: () => byHand({ code: CODE, prepare }) },
    ];
  },
};

function prepare(vm: Vm): void {
  vm.enableCap(KVM_CAP.EXIT_HYPERCALL, [BigInt(1 << KVM_HC_MAP_GPA_RANGE)]);
}

/** A KVM may have the capability, and yet never come to the call: one that emulates the guest's kernel mode. */
function reachesUserSpace(): boolean {
  using kvm = openKvm();
  if ((kvm.checkExtension(KVM_CAP.EXIT_HYPERCALL) & (1 << KVM_HC_MAP_GPA_RANGE)) === 0) return false;
  using guest = createGuest(CODE);
  prepare(guest.vm);
  enter(guest.vcpus[0], 1);
  return guest.vcpus[0].run(PROBE_MS).reason === 'hypercall';
}

await runAlone(import.meta.filename, hypercall);
