import { examineHost, type Check, type HostReport } from './host-report.js';
import { paint } from './output.js';
import { columns } from './table.js';

const MARKS = { ok: ['green', '✓'], warning: ['yellow', '!'], lack: ['red', '✗'] } as const;

const VERDICTS: Record<keyof HostReport['verdicts'], string> = { kvm: 'KVM', tcg: 'TCG', qemuKvm: 'KVM in QEMU' };

/** `vmexit doctor`. @returns 0 when a Linux guest can run here, else 1. */
export async function doctor(options: { json?: boolean }): Promise<number> {
  const report = await examineHost();
  process.stdout.write(options.json ? `${JSON.stringify(report, null, 2)}\n` : `${formatReport(report)}\n`);
  return report.verdicts.kvm.usable || report.verdicts.tcg.usable ? 0 : 1;
}

/** The report for a person: a table of what there is, the verdicts, what to do. */
export function formatReport(report: HostReport): string {
  const color = (style: 'green' | 'yellow' | 'red' | 'bold' | 'dim', text: string) =>
    paint(process.stdout, style, text);
  const mark = (state: Check['state']) => color(MARKS[state][0], MARKS[state][1]);
  const width = Math.max(...report.checks.map((check) => check.name.length));
  const lines: string[] = [];
  for (const section of new Set(report.checks.map((check) => check.section))) {
    const rows = report.checks.filter((check) => check.section === section);
    lines.push(color('bold', section));
    lines.push(columns(rows.map(({ state, name, value }) => [`  ${mark(state)}`, name.padEnd(width), value])), '');
  }
  for (const [name, { usable, reason }] of Object.entries(report.verdicts)) {
    lines.push(`${mark(usable ? 'ok' : 'lack')} ${color('bold', VERDICTS[name as keyof typeof VERDICTS])}: ${reason}`);
  }
  lines.push(`  --accel auto takes ${color('bold', report.auto.toUpperCase())}.`);
  const advice = report.checks.filter((check) => check.advice !== undefined);
  if (advice.length > 0) {
    lines.push('', color('bold', 'What to do'));
    for (const check of advice) lines.push(`  ${mark(check.state)} ${check.name}: ${check.advice!}`);
  }
  return lines.join('\n');
}
