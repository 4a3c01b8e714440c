-- migrate:up

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

-- The credentials of callers (docs/access.md). `python -m service keys` writes them with the login
-- of their owner. The service's role can only read them.
CREATE TABLE api_keys (
    key_id text NOT NULL,
    -- The actor of the writes of its caller.
    subject text NOT NULL,
    -- NULL means all.
    organizations text [],
    scopes text [] NOT NULL,
    -- SHA-256 of the whole key. Its secret has 256 random bits, so there is nothing to guess that a
    -- slow hash would protect.
    secret_hash bytea NOT NULL,
    -- The hash before the last rotation, and until when it is valid.
    former_secret_hash bytea,
    former_secret_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    -- Of all keys, the number of the last change.
    version bigint NOT NULL,
    CONSTRAINT api_keys_pkey PRIMARY KEY (key_id),
    CONSTRAINT api_keys_version_key UNIQUE (version),
    CONSTRAINT api_keys_hash_is_sha256 CHECK (
        octet_length(secret_hash) = 32 AND octet_length(former_secret_hash) = 32
    )
);

CREATE SEQUENCE api_key_versions OWNED BY api_keys.version;

GRANT SELECT ON api_keys TO appointments_service;

-- Number a change of an API key, in the order of the commits: the lock is held until the commit.
-- So whoever has read all changes up to a number reads the later ones, and misses none. That
-- would not see a deletion, so a key must have been revoked for a minute before.
CREATE FUNCTION number_api_key()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF old.revoked_at IS NULL OR old.revoked_at > now() - interval '1 minute' THEN
            RAISE EXCEPTION 'revoke the API key % and delete it a minute later', old.key_id
            USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        RETURN old;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('api_keys', 7236003));
    new.version := nextval('api_key_versions');
    RETURN new;
END
$$;

REVOKE ALL ON FUNCTION number_api_key FROM PUBLIC;
CREATE OR REPLACE TRIGGER api_keys_numbered BEFORE INSERT OR UPDATE OR DELETE ON api_keys
FOR EACH ROW EXECUTE FUNCTION number_api_key();

-- migrate:down

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

DROP TABLE api_keys;
DROP FUNCTION number_api_key;
