import com.hivemq.embedded.EmbeddedExtension;
import com.hivemq.embedded.EmbeddedHiveMQ;
import com.hivemq.embedded.EmbeddedHiveMQBuilder;
import com.hivemq.extension.sdk.api.ExtensionMain;
import com.hivemq.extension.sdk.api.auth.SimpleAuthenticator;
import com.hivemq.extension.sdk.api.auth.parameter.SimpleAuthInput;
import com.hivemq.extension.sdk.api.auth.parameter.SimpleAuthOutput;
import com.hivemq.extension.sdk.api.auth.parameter.TopicPermission;
import com.hivemq.extension.sdk.api.auth.parameter.TopicPermission.MqttActivity;
import com.hivemq.extension.sdk.api.client.parameter.ConnectionInformation;
import com.hivemq.extension.sdk.api.interceptor.connect.ConnectInboundInterceptor;
import com.hivemq.extension.sdk.api.interceptor.connect.parameter.ConnectInboundInput;
import com.hivemq.extension.sdk.api.interceptor.connect.parameter.ConnectInboundOutput;
import com.hivemq.extension.sdk.api.packets.auth.DefaultAuthorizationBehaviour;
import com.hivemq.extension.sdk.api.packets.connect.ConnackReasonCode;
import com.hivemq.extension.sdk.api.packets.connect.ConnectPacket;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartOutput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopOutput;
import com.hivemq.extension.sdk.api.services.Services;
import com.hivemq.extension.sdk.api.services.builder.Builders;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.security.cert.CRL;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import javax.crypto.SecretKeyFactory;
import javax.crypto.spec.PBEKeySpec;
import javax.naming.InvalidNameException;
import javax.naming.ldap.LdapName;

/**
 * HiveMQ as a process: {@code Broker FOLDER [OFFICE]}, with FOLDER/conf/config.xml.
 *
 * <p>Without OFFICE anybody may do anything. OFFICE is what {@code onestreet town} makes for Mosquitto: its access rules,
 * passwords and revocation list hold here too, with what is not in HiveMQ's own configuration.
 */
public final class Broker {
    public static void main(String[] arguments) throws Exception {
        Path folder = Path.of(arguments[0]);
        EmbeddedHiveMQBuilder builder = EmbeddedHiveMQ.builder()
                .withConfigurationFolder(folder.resolve("conf"))
                .withDataFolder(Files.createDirectories(folder.resolve("data")))
                .withExtensionsFolder(Files.createDirectories(folder.resolve("extensions")));
        if (arguments.length > 1) {
            builder.withEmbeddedExtension(EmbeddedExtension.builder()
                    .withId("onestreet")
                    .withName("onestreet")
                    .withVersion("1")
                    .withAuthor("onestreet")
                    .withExtensionMain(new Doors(Path.of(arguments[1])))
                    .build());
        }
        @SuppressWarnings("resource") // closed when the process is told to end
        EmbeddedHiveMQ broker = builder.build();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> broker.stop().join()));
        try {
            broker.start().join();
        } catch (RuntimeException error) {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }

    /** Who comes in, and what they may: the office's files, read at the start. */
    private static final class Doors implements ExtensionMain, ConnectInboundInterceptor, SimpleAuthenticator {
        private final Map<String, List<String>> rules = new HashMap<>();
        private final Map<String, String> passwords = new HashMap<>();
        private final Collection<? extends CRL> revoked;

        Doors(Path office) throws IOException, GeneralSecurityException {
            List<String> own = null;
            for (String line : Files.readAllLines(office.resolve("acl"))) {
                if (line.startsWith("user ")) {
                    own = rules.computeIfAbsent(line.substring(5), user -> new ArrayList<>());
                } else if (!line.isBlank() && !line.startsWith("#")) {
                    own.add(line);
                }
            }
            for (String line : Files.readAllLines(office.resolve("passwords"))) {
                passwords.put(line.substring(0, line.indexOf(':')), line.substring(line.indexOf(':') + 1));
            }
            try (InputStream list = Files.newInputStream(office.resolve("crl.pem"))) {
                revoked = CertificateFactory.getInstance("X.509").generateCRLs(list);
            }
        }

        @Override
        public void extensionStart(ExtensionStartInput input, ExtensionStartOutput output) {
            Services.interceptorRegistry().setConnectInboundInterceptorProvider(asked -> this);
            Services.securityRegistry().setAuthenticatorProvider(asked -> this);
        }

        @Override
        public void extensionStop(ExtensionStopInput input, ExtensionStopOutput output) {}

        /** The user is the client id: nobody takes over another's session. */
        @Override
        public void onConnect(ConnectInboundInput input, ConnectInboundOutput output) {
            user(input.getConnectionInformation(), input.getConnectPacket())
                    .ifPresent(output.getConnectPacket()::setClientId);
        }

        @Override
        public void onConnect(SimpleAuthInput input, SimpleAuthOutput output) {
            ConnectionInformation connection = input.getConnectionInformation();
            Optional<String> user = user(connection, input.getConnectPacket());
            if (user.isEmpty()
                    || !rules.containsKey(user.get())
                    || !(hasGoodCertificate(connection) || hasPassword(input.getConnectPacket(), user.get()))) {
                output.failAuthentication(ConnackReasonCode.NOT_AUTHORIZED);
                return;
            }
            for (String rule : rules.get(user.get())) {
                output.getDefaultPermissions().add(permission(rule));
            }
            output.getDefaultPermissions().setDefaultBehaviour(DefaultAuthorizationBehaviour.DENY);
            output.authenticateSuccessfully();
        }

        /** Whom a client says to be: by its certificate where it shows one. */
        private static Optional<String> user(ConnectionInformation connection, ConnectPacket connect) {
            Optional<X509Certificate> certificate = certificate(connection);
            return certificate.isPresent() ? certificate.flatMap(Doors::commonName) : connect.getUserName();
        }

        private static Optional<X509Certificate> certificate(ConnectionInformation connection) {
            return connection.getClientTlsInformation().flatMap(tls -> tls.getClientCertificate());
        }

        /** TLS has seen to its dates and its signature. */
        private boolean hasGoodCertificate(ConnectionInformation connection) {
            return certificate(connection)
                    .filter(shown -> revoked.stream().noneMatch(list -> list.isRevoked(shown)))
                    .isPresent();
        }

        private boolean hasPassword(ConnectPacket connect, String user) {
            String hashed = passwords.get(user);
            return hashed != null && connect.getPassword().map(word -> fits(word, hashed)).orElse(false);
        }

        private static Optional<String> commonName(X509Certificate certificate) {
            try {
                return new LdapName(certificate.getSubjectX500Principal().getName())
                        .getRdns().stream()
                                .filter(part -> part.getType().equals("CN"))
                                .map(part -> part.getValue().toString())
                                .findFirst();
            } catch (InvalidNameException error) {
                return Optional.empty();
            }
        }

        /** {@code $7$ITERATIONS$SALT$DIGEST}: PBKDF2 with SHA-512. */
        private static boolean fits(ByteBuffer password, String hashed) {
            String[] parts = hashed.split("\\$");
            byte[] digest = Base64.getDecoder().decode(parts[4]);
            PBEKeySpec asked = new PBEKeySpec(
                    StandardCharsets.UTF_8.decode(password).toString().toCharArray(),
                    Base64.getDecoder().decode(parts[3]),
                    Integer.parseInt(parts[2]),
                    8 * digest.length);
            try {
                SecretKeyFactory factory = SecretKeyFactory.getInstance("PBKDF2WithHmacSHA512");
                return MessageDigest.isEqual(factory.generateSecret(asked).getEncoded(), digest);
            } catch (GeneralSecurityException error) {
                throw new IllegalStateException(error);
            }
        }

        /** {@code topic read|write FILTER}. */
        private static TopicPermission permission(String rule) {
            String[] words = rule.split(" ", 3);
            return Builders.topicPermission()
                    .topicFilter(words[2])
                    .activity(words[1].equals("write") ? MqttActivity.PUBLISH : MqttActivity.SUBSCRIBE)
                    .build();
        }
    }
}
