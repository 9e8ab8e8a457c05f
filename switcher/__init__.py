"""The Switcher: enters and leaves the Guest (patched Unicorn, and the C that must be fast)."""
