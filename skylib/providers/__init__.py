"""Where nodes come from: a protocol, a registry, this machine, pools of SSH hosts."""
