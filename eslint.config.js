import js from '@eslint/js';
import tseslint from 'typescript-eslint';

/**
 * Who may import whom: folder of src/ -> the folders it may use besides itself and src/errors.ts.
 * A device never sees machine, kvm or native, so one class runs under KVM, over vhost-user and in a unit test.
 */
const MAY_IMPORT = {
  native: [],
  memory: ['native'],
  bus: [],
  irq: [],
  kvm: ['native', 'memory', 'irq'],
  loop: ['bus', 'kvm'],
  boot: ['memory'],
  guest: [],
  virtio: ['memory', 'bus', 'irq'],
  devices: ['virtio', 'bus', 'irq', 'memory'],
  // A backend implements the interface that is kept beside the device it serves.
  backends: ['devices', 'virtio', 'memory', 'bus', 'native'],
  machine: ['devices', 'backends', 'boot', 'loop', 'kvm', 'bus', 'irq', 'memory', 'virtio', 'guest'],
  bench: ['machine', 'guest', 'loop', 'kvm', 'bus'],
  cli: ['bench', 'machine', 'guest', 'kvm', 'backends'],
};
const folders = Object.keys(MAY_IMPORT);

const arrows = folders.map((folder) => ({
  files: [`src/${folder}/**/*.ts`],
  rules: {
    'no-restricted-imports': [
      'error',
      {
        patterns: [
          {
            group: folders
              .filter((other) => other !== folder && !MAY_IMPORT[folder].includes(other))
              .map((other) => `**/../${other}/**`),
            message: `src/${folder} may import only: ${MAY_IMPORT[folder].join(', ') || 'nothing'} (docs/design.md).`,
          },
        ],
      },
    ],
  },
}));

export default tseslint.config(
  { ignores: ['dist/', 'build/', 'build-*/', 'node_modules/', '.cache/'] },
  js.configs.recommended,
  {
    files: ['**/*.ts'],
    extends: [...tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      '@typescript-eslint/consistent-type-imports': 'error',
    },
  },
  ...arrows,
);
