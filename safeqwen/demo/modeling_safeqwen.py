from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration  # noqa: F401  the one source, in the installed package
