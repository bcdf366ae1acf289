import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const PACKAGE = fileURLToPath(new URL('../../../src/kvm/index.ts', import.meta.url));

describe('the native addon', () => {
  it('is missed with the paths that were tried and the command that builds it', () => {
    const program = `
      import { EventFd } from ${JSON.stringify(PACKAGE)};
      try { new EventFd(); } catch ({ code, message }) { console.log(JSON.stringify({ code, message })); }
    `;
    const output = execFileSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program], {
      env: { ...process.env, VMEXIT_ADDON_ROOT: '/no/such/folder' },
      encoding: 'utf8',
    });
    const { code, message } = JSON.parse(output) as { code: string; message: string };
    expect(code).toBe('ADDON_LOAD');
    expect(message).toContain('/no/such/folder/build/Release/vmexit.node');
    expect(message).toContain('npm rebuild vmexit');
  });
});
