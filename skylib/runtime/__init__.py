"""What stands on a node: layout, Ray commands, the private environment, bring-up, the agent."""
