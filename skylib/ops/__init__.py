"""Operations: what each verb of the client does, one module per family."""
