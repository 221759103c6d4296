"""Says which Transformers is needed, where it is another one."""

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "kvtier.integrations.transformers needs Transformers 5.14 or newer: "
        f"pip install 'kvtier[transformers]' ({error})"
    ) from error

if not hasattr(transformers.DynamicCache, "activate_past_recording"):
    raise ImportError(
        "kvtier.integrations.transformers needs Transformers 5.14 or newer, and this is "
        f"{transformers.__version__}: pip install 'kvtier[transformers]'"
    )
