# Keeps KVM's static keys as they are while the nested host lives, by two VMs that never run.
#
# Linux rewrites its own code when the first VM of a host is made and when the last one goes, and when the first vCPU
# appears that has no local APIC, or one that is switched off. QEMU before 8.1 has a race there: its emulated processors
# may keep the breakpoint that stands in the place while it is rewritten, and then take that exception for ever (QEMU
# commit deba78709a, "accel/tcg: Always lock pages before translation").
use strict;
use warnings;

# Requests and structures: Linux, Documentation/virt/kvm/api.rst.
use constant {
  KVM_CREATE_VM => 0xAE01,
  KVM_CREATE_VCPU => 0xAE41,
  KVM_CREATE_IRQCHIP => 0xAE60,
  KVM_SET_MSRS => 0x4008AE89,
  MSR_IA32_APICBASE => 0x1B,
};

sub request {
  my ($file, $request, $argument) = @_;
  my $result = ioctl($file, $request, $argument) or die sprintf("KVM request 0x%x: $!\n", $request);
  return $result;
}

sub descriptor {
  open(my $file, '+<&=', $_[0]) or die "fd $_[0]: $!\n";
  return $file;
}

open(my $kvm, '+<', '/dev/kvm') or die "/dev/kvm: $!\n";
my $plain = descriptor(request($kvm, KVM_CREATE_VM, 0));
my $vcpu = descriptor(request($plain, KVM_CREATE_VCPU, 0));

my $with_apic = descriptor(request($kvm, KVM_CREATE_VM, 0));
request($with_apic, KVM_CREATE_IRQCHIP, 0);
my $switched_off = descriptor(request($with_apic, KVM_CREATE_VCPU, 0));
request($switched_off, KVM_SET_MSRS, pack('L4 Q', 1, 0, MSR_IA32_APICBASE, 0, 0xfee00000));

defined(my $holder = fork) or die "fork: $!\n";
sleep if $holder == 0;
