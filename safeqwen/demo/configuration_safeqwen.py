from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig  # noqa: F401  the one source, in the installed package
